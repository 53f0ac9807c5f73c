//! Kernels of the user's own: MLIR text in, an object with the kernel convention out, and a run of it for checking.
//!
//! The file's functions are followed by one of ours, which has the ABI's convention: it makes a memref descriptor of every
//! buffer and calls the function. An operand that is not dense is copied to scratch before and from scratch after the call; then
//! there is one tile, which asks the function for all of its own.

use std::fmt::Write;

use crate::abi::DType;
use crate::program::{CustomArgument, CustomSpec};

/// A custom kernel ready to be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// MLIR text with the symbol still as [`SYMBOL`].
    pub text: String,
    /// Tiles of a launch.
    pub tiles: u64,
    /// Scratch of a thread.
    pub scratch_bytes: u64,
}

/// Stands for the exported function's name, which is a hash of the text.
pub const SYMBOL: &str = "mlc_custom_kernel";

/// Scratch copies start at multiples of this.
const ALIGN: u64 = 64;

/// The module of a kernel.
pub fn module(spec: &CustomSpec) -> Module {
    let dense = spec.arguments.iter().all(CustomArgument::is_dense);
    let mut w = Wrapper { text: String::new(), temporaries: 0, scratch: 0 };
    let _ = writeln!(w.text, "module {{\n{}", spec.source);
    let _ = writeln!(
        w.text,
        "llvm.func @{SYMBOL}(%buffers: !llvm.ptr, %scalars: !llvm.ptr, %begin: i64, %end: i64, %scratch: !llvm.ptr) {{"
    );
    let pointers: Vec<(String, String)> = spec.arguments.iter().map(|a| w.pointers(a)).collect();
    for (argument, (outside, inside)) in spec.arguments.iter().zip(&pointers) {
        if !argument.is_dense() && !argument.written {
            w.copy(argument, outside, inside, false);
        }
    }
    let memrefs: Vec<String> =
        spec.arguments.iter().zip(&pointers).map(|(a, (_, inside))| w.memref(a, inside)).collect();
    w.call(spec, &memrefs, dense);
    for (argument, (outside, inside)) in spec.arguments.iter().zip(&pointers) {
        if !argument.is_dense() && argument.written {
            w.copy(argument, inside, outside, true);
        }
    }
    w.text += "llvm.return\n}\n}\n";
    Module { text: w.text, tiles: if dense { spec.tiles } else { 1 }, scratch_bytes: w.scratch }
}

struct Wrapper {
    text: String,
    temporaries: u32,
    scratch: u64,
}

/// Element type in memory.
fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::Bf16 => "bf16",
        DType::I32 => "i32",
        DType::I64 => "i64",
        DType::Bool => "i8",
    }
}

fn memref_type(a: &CustomArgument) -> String {
    let sizes: String = a.dims.iter().map(|n| format!("{n}x")).collect();
    format!("memref<{sizes}{}>", element(a.operand.dtype))
}

impl Wrapper {
    fn temporary(&mut self, text: impl AsRef<str>) -> String {
        let name = format!("%mlc{}", self.temporaries);
        self.temporaries += 1;
        let _ = writeln!(self.text, "  {name} = {}", text.as_ref());
        name
    }

    /// Where the operand lies, and where the function finds it.
    fn pointers(&mut self, a: &CustomArgument) -> (String, String) {
        let slot = self.temporary(format!(
            "llvm.getelementptr %buffers[{}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr",
            a.operand.buffer
        ));
        let base = self.temporary(format!("llvm.load {slot} : !llvm.ptr -> !llvm.ptr"));
        let outside = self.element_pointer(&base, a.operand.offset, a.operand.dtype);
        if a.is_dense() {
            return (outside.clone(), outside);
        }
        let at = self.scratch;
        self.scratch = (at + a.bytes()).next_multiple_of(ALIGN);
        let inside =
            self.temporary(format!("llvm.getelementptr %scratch[{at}] : (!llvm.ptr) -> !llvm.ptr, i8"));
        (outside, inside)
    }

    fn element_pointer(&mut self, base: &str, offset: u64, dtype: DType) -> String {
        if offset == 0 {
            return base.to_string();
        }
        let element = element(dtype);
        self.temporary(format!("llvm.getelementptr {base}[{offset}] : (!llvm.ptr) -> !llvm.ptr, {element}"))
    }

    fn memref(&mut self, a: &CustomArgument, pointer: &str) -> String {
        let rank = a.dims.len();
        let arrays =
            if rank > 0 { format!(", array<{rank} x i64>, array<{rank} x i64>") } else { String::new() };
        let ty = format!("!llvm.struct<(ptr, ptr, i64{arrays})>");
        let mut value = self.temporary(format!("llvm.mlir.poison : {ty}"));
        for field in 0..2 {
            value = self.temporary(format!("llvm.insertvalue {pointer}, {value}[{field}] : {ty}"));
        }
        let zero = self.temporary("llvm.mlir.constant(0 : i64) : i64");
        value = self.temporary(format!("llvm.insertvalue {zero}, {value}[2] : {ty}"));
        let mut stride = 1;
        for (i, size) in a.dims.iter().enumerate().rev() {
            for (field, number) in [(3, *size), (4, stride)] {
                let number = self.temporary(format!("llvm.mlir.constant({number} : i64) : i64"));
                value = self.temporary(format!("llvm.insertvalue {number}, {value}[{field}, {i}] : {ty}"));
            }
            stride *= size;
        }
        self.temporary(format!("builtin.unrealized_conversion_cast {value} : {ty} to {}", memref_type(a)))
    }

    fn call(&mut self, spec: &CustomSpec, memrefs: &[String], dense: bool) {
        let mut arguments = memrefs.to_vec();
        let mut types: Vec<String> = spec.arguments.iter().map(memref_type).collect();
        if spec.in_tiles {
            let range = match dense {
                true => ["%begin".to_string(), "%end".to_string()],
                false => {
                    [0, spec.tiles].map(|n| self.temporary(format!("llvm.mlir.constant({n} : i64) : i64")))
                }
            };
            for bound in range {
                arguments.push(self.temporary(format!("arith.index_cast {bound} : i64 to index")));
                types.push("index".to_string());
            }
        }
        let (arguments, types) = (arguments.join(", "), types.join(", "));
        let _ = writeln!(self.text, "  func.call @{}({arguments}) : ({types}) -> ()", spec.function);
    }

    /// Copies between the strided operand and the dense scratch; `out` from scratch to the operand.
    fn copy(&mut self, a: &CustomArgument, from: &str, to: &str, out: bool) {
        let element = element(a.operand.dtype);
        let mut dense = vec![1; a.dims.len()];
        for i in (1..a.dims.len()).rev() {
            dense[i - 1] = dense[i] * a.dims[i];
        }
        let [zero, one] = [0, 1].map(|n| self.temporary(format!("arith.constant {n} : i64")));
        let mut indices = Vec::new();
        for size in &a.dims {
            let end = self.temporary(format!("arith.constant {size} : i64"));
            let index = format!("%mlc{}", self.temporaries);
            self.temporaries += 1;
            let _ = writeln!(self.text, "  scf.for {index} = {zero} to {end} step {one} : i64 {{");
            indices.push(index);
        }
        let (read, write) = if out { (&dense, &a.operand.strides) } else { (&a.operand.strides, &dense) };
        let source = self.indexed(from, &indices, read, element);
        let target = self.indexed(to, &indices, write, element);
        let value = self.temporary(format!("llvm.load {source} : !llvm.ptr -> {element}"));
        let _ = writeln!(self.text, "  llvm.store {value}, {target} : {element}, !llvm.ptr");
        for _ in &a.dims {
            self.text += "  }\n";
        }
    }

    fn indexed(&mut self, base: &str, indices: &[String], strides: &[u64], element: &str) -> String {
        let mut offset = self.temporary("arith.constant 0 : i64");
        for (index, stride) in indices.iter().zip(strides) {
            let stride = self.temporary(format!("arith.constant {stride} : i64"));
            let part = self.temporary(format!("arith.muli {index}, {stride} : i64"));
            offset = self.temporary(format!("arith.addi {offset}, {part} : i64"));
        }
        self.temporary(format!(
            "llvm.getelementptr {base}[{offset}] : (!llvm.ptr, i64) -> !llvm.ptr, {element}"
        ))
    }
}
