//! Kernels of the user's own: an MLIR file with a function `@forward`, and maybe `@backward`.
//!
//! Arguments are bound by name. In `@forward` an argument is an operand of the block (`%x`), one of its parameters (`%gate`), its
//! result (`%out`) or a value the block names, which is then written and kept for the backward pass. In `@backward` it is any
//! of those, now read, `%d_out`, or `%d_NAME` of an operand or parameter, written. All are dense `memref`s in the order of axes of
//! the block; a size stands in the text as `${axis}`.
//!
//! ```text
//! func.func @forward(%x: memref<${batch}x${seq}x${d}xf32>, %out: memref<${batch}x${seq}x${d}xf32>) { … }
//! ```
//! If a function ends with `%begin: index, %end: index`, it computes those of `// tiles: N` independent parts, which threads share.

use super::{DType, Name, Type};
use std::collections::BTreeMap;

/// Name of a block's result among the arguments.
pub const RESULT: &str = "out";

/// A custom kernel in a graph: `custom operands.. -> results..`.
#[derive(Clone, PartialEq, Debug)]
pub struct Custom {
    /// File as the user wrote it.
    pub file: Name,
    /// Its text, sizes still as `${axis}`.
    pub source: Name,
    /// `forward` or `backward`.
    pub function: Name,
    /// The op's operands, then its results. A function may leave out operands.
    pub arguments: Vec<Argument>,
}

/// An operand or result of a custom kernel as its function sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Argument {
    /// Name without the `%`.
    pub name: Name,
    /// Order of its axes in memory, outermost first.
    pub axes: Vec<Name>,
}

impl Argument {
    /// The type with the axes in this order.
    pub fn ordered(&self, ty: &Type) -> Type {
        let axis = |name: &Name| ty.axes.iter().find(|a| a.name == *name).cloned();
        Type::new(ty.dtype, self.axes.iter().filter_map(axis).collect())
    }
}

impl Custom {
    /// The function of the file.
    ///
    /// # Errors
    /// The file does not read, or has no such function: one sentence.
    pub fn signature(&self) -> Result<Function, String> {
        let found = functions(&self.source).map_err(|why| format!("{}: {why}", self.file))?;
        let function = found.into_iter().find(|f| f.name == self.function.as_str());
        function.ok_or_else(|| format!("{}: there is no `func.func @{}`", self.file, self.function))
    }

    /// Position among the op's operands and results of each argument of the function.
    ///
    /// # Errors
    /// As [`Custom::signature`], or an argument is neither.
    pub fn bound(&self) -> Result<Vec<usize>, String> {
        let place = |name: &String| {
            let found = self.arguments.iter().position(|a| a.name.as_str() == name);
            found.ok_or_else(|| format!("{}: `%{name}` of `@{}` is not bound", self.file, self.function))
        };
        self.signature()?.arguments.iter().map(|(name, _)| place(name)).collect()
    }
}

/// A function of a file.
#[derive(Clone, PartialEq, Debug)]
pub struct Function {
    /// Without the `@`.
    pub name: String,
    /// (name without the `%`, type as written, blanks taken out), the tile range left out.
    pub arguments: Vec<(String, String)>,
    /// Whether it ends with `%begin: index, %end: index`.
    pub in_tiles: bool,
}

/// The functions of a file, in order.
///
/// # Errors
/// A function's arguments can't be read: the line and what is wrong.
pub fn functions(source: &str) -> Result<Vec<Function>, String> {
    let text = without_comments(source);
    let mut found = Vec::new();
    let mut rest = 0;
    while let Some(at) = text[rest..].find("func.func") {
        let start = rest + at + "func.func".len();
        let line = text[..start].lines().count();
        let fail = |what: &str| format!("line {line}: {what}");
        let name_at = text[start..].find('@').ok_or_else(|| fail("`func.func` without a name"))? + start + 1;
        let open = text[name_at..].find('(').ok_or_else(|| fail("a function without arguments"))? + name_at;
        let close = closing(&text, open).ok_or_else(|| fail("the arguments are not closed"))?;
        let name = text[name_at..open].trim().to_string();
        let mut arguments = Vec::new();
        for part in top_level(&text[open + 1..close]) {
            let (argument, ty) =
                part.split_once(':').ok_or_else(|| fail(&format!("`{part}` has no type")))?;
            let argument =
                argument.trim().strip_prefix('%').ok_or_else(|| fail(&format!("`{part}` has no name")))?;
            // Attributes stand behind the type.
            let ty: String = attribute_free(ty).chars().filter(|c| !c.is_whitespace()).collect();
            arguments.push((argument.to_string(), ty));
        }
        let tail: Vec<&str> = arguments.iter().rev().take(2).rev().map(|(name, _)| name.as_str()).collect();
        let in_tiles = tail == ["begin", "end"];
        if in_tiles {
            arguments.truncate(arguments.len() - 2);
        }
        found.push(Function { name, arguments, in_tiles });
        rest = close;
    }
    Ok(found)
}

/// The text with the sizes of axes in the place of `${axis}`.
///
/// # Errors
/// The first name that is no axis.
pub fn substituted(source: &str, sizes: &BTreeMap<String, u64>) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, behind) = after.split_once('}').ok_or("`${` is not closed")?;
        let size = sizes.get(name.trim()).ok_or_else(|| {
            let known: Vec<&str> = sizes.keys().map(String::as_str).collect();
            format!("no axis `{name}` here; there are {}", known.join(", "))
        })?;
        text += before;
        text += &size.to_string();
        rest = behind;
    }
    Ok(text + rest)
}

/// The number behind `// KEY:` in a comment line of its own, sizes put in; products are written with `*`.
///
/// # Errors
/// It is no number.
pub fn directive(source: &str, key: &str) -> Result<Option<String>, String> {
    let prefix = format!("// {key}:");
    let mut lines = source.lines().filter_map(|line| line.trim().strip_prefix(prefix.as_str()));
    let first = lines.next().map(|text| text.trim().to_string());
    if lines.next().is_some() { Err(format!("`{prefix}` is given twice")) } else { Ok(first) }
}

/// Number of tiles of a function whose text has its sizes: a product of numbers behind `// tiles:`, 1 without.
///
/// # Errors
/// It is no product of numbers above 0.
pub fn tiles(source: &str) -> Result<u64, String> {
    let Some(text) = directive(source, "tiles")? else { return Ok(1) };
    let factor = |part: &str| part.trim().parse::<u64>().ok().filter(|n| *n > 0);
    let product = text.split('*').map(factor).try_fold(1u64, |product, n| product.checked_mul(n?));
    product.ok_or_else(|| format!("`// tiles: {text}` is no product of numbers above 0"))
}

/// The dense type of an argument.
pub fn memref(ty: &Type) -> String {
    let element = match ty.dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::Bf16 => "bf16",
        DType::I32 => "i32",
        DType::I64 => "i64",
        DType::Bool => "i8",
    };
    let sizes: String = ty.axes.iter().map(|a| format!("{}x", a.size)).collect();
    format!("memref<{sizes}{element}>")
}

fn without_comments(source: &str) -> String {
    source.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// Where the bracket that opens at `open` closes.
fn closing(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0i64;
    for (i, c) in text[open..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(open + i);
        }
    }
    None
}

/// Parts between commas that stand in no bracket.
fn top_level(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0i64, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// A type without the attributes behind it; the braces of `${axis}` belong to the type.
fn attribute_free(ty: &str) -> &str {
    let end = ty.char_indices().find(|(i, c)| *c == '{' && !ty[..*i].ends_with('$'));
    end.map_or(ty, |(i, _)| &ty[..i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Axis;

    const SOURCE: &str = "// tiles: ${a} * 2
func.func @forward(%x: memref<${a}x${b}xf32> {llvm.noalias}, // the input
                   %out : memref<${a} x f32>, %begin: index, %end: index) {
  return
}
func.func private @helper(%v: vector<8xf32>) -> f32 { return %v : f32 }
";

    #[test]
    fn functions_have_named_and_typed_arguments() {
        let found = functions(SOURCE).expect("it reads");
        assert_eq!(found.len(), 2);
        let pair = |name: &str, ty: &str| (name.to_string(), ty.to_string());
        assert_eq!(found[0].arguments, [pair("x", "memref<${a}x${b}xf32>"), pair("out", "memref<${a}xf32>")]);
        assert!(found[0].in_tiles && !found[1].in_tiles);
    }

    #[test]
    fn sizes_are_put_in_and_unknown_ones_named() {
        let sizes = BTreeMap::from([("a".to_string(), 3), ("b".to_string(), 4)]);
        let text = substituted(SOURCE, &sizes).expect("both are known");
        assert!(text.contains("memref<3x4xf32>"));
        assert_eq!(tiles(&text), Ok(6));
        let error = substituted("${c}", &sizes).unwrap_err();
        assert_eq!(error, "no axis `c` here; there are a, b");
    }

    #[test]
    fn arguments_without_a_type_or_a_name_are_refused() {
        assert!(functions("func.func @f(%x) {}").unwrap_err().contains("`%x` has no type"));
        assert!(functions("\nfunc.func @f(memref<f32>) {}").unwrap_err().starts_with("line 2"));
    }

    #[test]
    fn memrefs_are_dense_in_the_order_of_axes() {
        let ty = Type::new(DType::Bf16, vec![Axis::new("a", 3), Axis::new("b", 4)]);
        assert_eq!(memref(&ty), "memref<3x4xbf16>");
        assert_eq!(memref(&Type::scalar(DType::F32)), "memref<f32>");
    }
}
