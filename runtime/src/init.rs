//! The first value of every parameter and optimizer state.
//!
//! Element i of a logical tensor, i the index in the whole tensor, is a pure function of (seed, logical path of the layer's
//! tensor, i), hence the same for any number of threads, on any mesh, and wherever a slice of the tensor lives. Normals come in
//! pairs: elements 2j and 2j + 1 share the random block j.

use crate::abi::{DType, Init};
use crate::numeric::f32_to_bf16;
use crate::program::LogicalTensor;
use crate::random::{Stream, normal::normals};
use crate::rank::Rank;
use crate::shard::Runs;

/// Elements set by one tile.
const CHUNK: u64 = 8192;
/// Normals drawn at a time; even, so that only the first of a run may be the second of its pair.
const BATCH: usize = 512;

/// Sets every persistent tensor.
pub fn init_all(rank: &mut Rank, seed: u64) {
    let program = rank.program;
    init(rank, &program.logical_tensors(), seed);
}

/// Sets this rank's parts of the given tensors, on all threads.
pub fn init(rank: &mut Rank, tensors: &[LogicalTensor], seed: u64) {
    let mut first_chunk = Vec::with_capacity(tensors.len() + 1);
    let mut chunks = 0;
    for tensor in tensors {
        first_chunk.push(chunks);
        chunks += tensor.elements.div_ceil(CHUNK);
    }
    let streams: Vec<Stream> = tensors.iter().map(|t| Stream::new(seed, &t.name)).collect();
    let runs: Vec<Runs> =
        tensors.iter().map(|t| rank.part(&t.tensor.shape, &t.tensor.split).runs()).collect();
    let addresses: Vec<usize> = tensors.iter().map(|t| rank.address(t.place) as usize).collect();
    rank.pool().run(chunks as i64, &|begin, end, _thread| {
        for chunk in begin as u64..end as u64 {
            let index = first_chunk.partition_point(|&first| first <= chunk) - 1;
            let (tensor, stream) = (&tensors[index], &streams[index]);
            let start = (chunk - first_chunk[index]) * CHUNK;
            let elements = CHUNK.min(tensor.elements - start);
            let width = tensor.tensor.dtype.bytes();
            // SAFETY: chunks are disjoint parts of tensors that `Program::new` found inside their spaces, and the rank is
            // borrowed exclusively, so that no other code looks at them.
            let bytes = unsafe {
                let address = (addresses[index] + (start * width) as usize) as *mut u8;
                std::slice::from_raw_parts_mut(address, (elements * width) as usize)
            };
            // Padding stays zero.
            bytes.fill(0);
            for (local, global, length) in runs[index].within(start..start + elements) {
                let begin = ((local - start) * width) as usize;
                let piece = &mut bytes[begin..begin + (length * width) as usize];
                fill(piece, tensor.tensor.dtype, tensor.tensor.init, stream, global);
            }
        }
    });
}

/// Writes elements `start..` of a tensor.
fn fill(bytes: &mut [u8], dtype: DType, init: Init, stream: &Stream, start: u64) {
    match init {
        Init::Constant(value) => fill_with(bytes, dtype, |_| value),
        Init::Uniform { low, high } => {
            fill_with(bytes, dtype, |i| low + (high - low) * stream.unit(start + i));
        }
        Init::Normal { std } => fill_normal(bytes, dtype, std, stream, start),
    }
}

fn fill_normal(bytes: &mut [u8], dtype: DType, std: f64, stream: &Stream, start: u64) {
    let width = dtype.bytes() as usize;
    let mut normal = [0.0; BATCH];
    let (mut rest, mut at) = (bytes, start);
    while !rest.is_empty() {
        // A run may begin with the second number of a pair.
        let skip = (at % 2) as usize;
        let elements = (BATCH - skip).min(rest.len() / width);
        normals(stream, at / 2, &mut normal[..skip + elements]);
        let (part, after) = rest.split_at_mut(elements * width);
        fill_with(part, dtype, |i| std * normal[skip + i as usize]);
        (rest, at) = (after, at + elements as u64);
    }
}

/// Writes `value(0)`, `value(1)`, … as elements of `dtype`.
fn fill_with(bytes: &mut [u8], dtype: DType, value: impl Fn(u64) -> f64) {
    match dtype {
        DType::F32 => fill_as(bytes, |i| (value(i) as f32).to_le_bytes()),
        DType::F64 => fill_as(bytes, |i| value(i).to_le_bytes()),
        DType::Bf16 => fill_as(bytes, |i| f32_to_bf16(value(i) as f32).to_le_bytes()),
        DType::I32 => fill_as(bytes, |i| (value(i) as i32).to_le_bytes()),
        DType::I64 => fill_as(bytes, |i| (value(i) as i64).to_le_bytes()),
        DType::Bool => fill_as(bytes, |i| [u8::from(value(i) != 0.0)]),
    }
}

fn fill_as<const WIDTH: usize>(bytes: &mut [u8], element: impl Fn(u64) -> [u8; WIDTH]) {
    for (target, i) in bytes.chunks_exact_mut(WIDTH).zip(0..) {
        target.copy_from_slice(&element(i));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(elements: u64, start: u64, init: Init) -> Vec<f32> {
        let mut bytes = vec![0; elements as usize * 4];
        fill(&mut bytes, DType::F32, init, &Stream::new(1, "layer.0.w"), start);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn fill_depends_on_the_index_and_not_on_the_chunk() {
        for init in [Init::Normal { std: 0.02 }, Init::Uniform { low: -1.0, high: 2.0 }, Init::Constant(3.0)]
        {
            let whole = filled(2000, 0, init);
            for (begin, end) in [(40, 100), (41, 42), (41, 100), (1, 2000), (511, 1535), (1999, 2000)] {
                assert_eq!(whole[begin..end], filled((end - begin) as u64, begin as u64, init));
            }
        }
    }

    #[test]
    fn fill_uniform_stays_in_its_interval() {
        let values = filled(5000, 0, Init::Uniform { low: -1.0, high: 2.0 });
        assert!(values.iter().all(|v| (-1.0..2.0).contains(v)));
        let mean = values.iter().sum::<f32>() / 5000.0;
        // Standard error of the mean of 5000 numbers of standard deviation 3/√12 is 0.012; five of them.
        assert!((mean - 0.5).abs() < 0.06, "{mean}");
    }

    /// Bits computed by another implementation of the definition above (Python, with its own Philox and the platform's
    /// logarithm and sine). Weights of released models depend on them: they never change.
    #[test]
    fn fill_gives_the_known_weights() {
        let stream = Stream::new(7, "layer.3.attn.wq");
        let bits = |start: u64, elements: usize| -> Vec<u32> {
            let mut bytes = vec![0; elements * 4];
            fill(&mut bytes, DType::F32, Init::Normal { std: 0.02 }, &stream, start);
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        assert_eq!(bits(0, 3), [0xbc1d_b501, 0xbc04_672a, 0x3c0a_92fc]);
        assert_eq!(bits(1_000_000, 2)[1], 0x3bf3_eab9);
    }
}
