//! What a window of a stream says of the documents in it.
//!
//! A document ends with the end id, which belongs to it. A window may begin inside a document and end inside one; what
//! lies outside the window is not known here, so the first document of a row is number 0 and begins at position 0.
//!
//! ```text
//! window     a  b  $  c  $  d  e  f      seq + 1 ids, $ the end id
//! tokens     a  b  $  c  $  d  e
//! targets    b  $  c  $  d  e  f
//! segments   0  0  0  1  1  2  2         the document of the token, counted within the row
//! positions  0  1  2  0  1  0  1         its place in that document
//! weight     1  1  0  1  0  1  1         0 where the target belongs to the next document
//! ```
//! Without an end id a row is one document.

/// Segments, positions and weights of one row, `[seq]` each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    /// Number of the token's document within the row, from 0.
    pub segments: Vec<u32>,
    /// Place of the token in its document, from 0.
    pub positions: Vec<u32>,
    /// 1, or 0 where the target belongs to another document than the token.
    pub weights: Vec<u32>,
}

impl Documents {
    /// Documents of a row of tokens (the window without its last id).
    pub fn of(tokens: &[u32], end: Option<u32>) -> Documents {
        let mut found = Documents::default();
        let (mut segment, mut position) = (0, 0);
        for &token in tokens {
            let ends = Some(token) == end;
            found.segments.push(segment);
            found.positions.push(position);
            found.weights.push(u32::from(!ends));
            (segment, position) = if ends { (segment + 1, 0) } else { (segment, position + 1) };
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_counted_within_the_row() {
        let found = Documents::of(&[5, 6, 0, 7, 0, 8, 9], Some(0));
        assert_eq!(found.segments, [0, 0, 0, 1, 1, 2, 2]);
        assert_eq!(found.positions, [0, 1, 2, 0, 1, 0, 1]);
        assert_eq!(found.weights, [1, 1, 0, 1, 0, 1, 1]);
    }

    #[test]
    fn documents_may_be_empty_and_without_end_there_is_one() {
        let found = Documents::of(&[0, 0, 3], Some(0));
        assert_eq!((found.segments, found.weights), (vec![0, 1, 2], vec![0, 0, 1]));
        let found = Documents::of(&[0, 0, 3], None);
        assert_eq!((found.segments, found.positions), (vec![0; 3], vec![0, 1, 2]));
        assert_eq!(found.weights, [1; 3]);
    }
}
