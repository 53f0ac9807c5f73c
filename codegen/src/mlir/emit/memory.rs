//! Loads and stores: addresses, masks, and the types that differ in memory.

use mlc_runtime::abi::DType;

use super::{Emitter, broadcast, constant, iota, mlir_type};
use crate::kir::{At, Elem, Mem, Type, Value};

/// MLIR type of `lanes` elements as they lie in memory.
fn memory_type(dtype: DType, lanes: u32) -> String {
    let elem = match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::Bf16 => "i16",
        DType::I32 => "i32",
        DType::I64 => "i64",
        DType::Bool => "i8",
    };
    if lanes > 1 { format!("vector<{lanes}x{elem}>") } else { elem.to_string() }
}

impl Emitter<'_> {
    pub(super) fn address(&mut self, mem: Mem, index: &str) -> String {
        let memory = memory_type(self.kernel.mem(mem).1, 1);
        let base = self.pointer(mem);
        self.temporary(format!(
            "llvm.getelementptr inbounds {base}[{index}] : (!llvm.ptr, i64) -> !llvm.ptr, {memory}"
        ))
    }

    /// One address per lane.
    pub(super) fn addresses(&mut self, mem: Mem, indices: &str, ty: Type) -> String {
        let memory = memory_type(self.kernel.mem(mem).1, 1);
        let base = self.pointer(mem);
        self.temporary(format!(
            "llvm.getelementptr inbounds {base}[{indices}] : (!llvm.ptr, {}) -> {}, {memory}",
            mlir_type(ty),
            pointers(ty.lanes)
        ))
    }

    pub(super) fn strided_addresses(&mut self, at: &At, stride: Value, lanes: u32) -> String {
        let ty = Type::vector(Elem::I64, lanes);
        let t = mlir_type(ty);
        let base = self.temporary(broadcast(&self.name(at.index), ty));
        let step = self.temporary(broadcast(&self.name(stride), ty));
        let lane = self.temporary(iota(ty));
        let offset = self.temporary(format!("arith.muli {lane}, {step} : {t}"));
        let indices = self.temporary(format!("arith.addi {base}, {offset} : {t}"));
        self.addresses(at.mem, &indices, ty)
    }

    /// Lanes below `count`, or all.
    pub(super) fn mask(&mut self, count: Option<Value>, lanes: u32) -> String {
        let mask = Type::vector(Elem::I1, lanes);
        let Some(count) = count else { return self.temporary(constant(mask, 1)) };
        let int = Type::vector(Elem::I32, lanes);
        let most = self.temporary(constant(Type::I64, lanes as u64));
        let zero = self.temporary(constant(Type::I64, 0));
        let count = self.temporary(format!("arith.minsi {}, {most} : i64", self.name(count)));
        let count = self.temporary(format!("arith.maxsi {count}, {zero} : i64"));
        let count = self.temporary(format!("arith.trunci {count} : i64 to i32"));
        let counts = self.temporary(broadcast(&count, int));
        let lane = self.temporary(iota(int));
        self.temporary(format!("arith.cmpi slt, {lane}, {counts} : {}", mlir_type(int)))
    }

    pub(super) fn load(&mut self, at: &At, lanes: u32, count: Option<Value>) -> String {
        let dtype = self.kernel.mem(at.mem).1;
        let (memory, align) = (memory_type(dtype, lanes), dtype.bytes());
        if let Some(stride) = at.stride {
            let addresses = self.strided_addresses(at, stride, lanes);
            return self.gather(dtype, &addresses, lanes, count);
        }
        let index = self.name(at.index);
        let loaded = match count {
            None => {
                let address = self.address(at.mem, &index);
                format!("llvm.load {address} {{alignment = {align} : i64}} : !llvm.ptr -> {memory}")
            }
            Some(count) if lanes == 1 => self.scalar_load_if(at.mem, &index, count),
            Some(_) => {
                let address = self.address(at.mem, &index);
                let mask = self.mask(count, lanes);
                let zero = self.temporary(memory_zero(dtype, lanes));
                format!(
                    "llvm.intr.masked.load {address}, {mask}, {zero} {{alignment = {align} : i32}} : \
                     (!llvm.ptr, vector<{lanes}xi1>, {memory}) -> {memory}"
                )
            }
        };
        self.widen_loaded(dtype, loaded, lanes)
    }

    pub(super) fn scalar_load_if(&mut self, mem: Mem, index: &str, count: Value) -> String {
        let dtype = self.kernel.mem(mem).1;
        let (memory, align) = (memory_type(dtype, 1), dtype.bytes());
        let any = self.positive(count);
        let name = self.temporary(format!("scf.if {any} -> ({memory}) {{"));
        self.depth += 1;
        let address = self.address(mem, index);
        let loaded = self
            .temporary(format!("llvm.load {address} {{alignment = {align} : i64}} : !llvm.ptr -> {memory}"));
        self.line(format!("scf.yield {loaded} : {memory}"));
        self.depth -= 1;
        self.line("} else {");
        self.depth += 1;
        let zero = self.temporary(memory_zero(dtype, 1));
        self.line(format!("scf.yield {zero} : {memory}"));
        self.depth -= 1;
        self.line("}");
        // An op that gives the value its final name.
        format!("llvm.freeze {name} : {memory}")
    }

    pub(super) fn positive(&mut self, count: Value) -> String {
        let zero = self.temporary(constant(Type::I64, 0));
        self.temporary(format!("arith.cmpi sgt, {}, {zero} : i64", self.name(count)))
    }

    pub(super) fn gather_op(&mut self, mem: Mem, indices: Value, count: Option<Value>) -> String {
        let ty = self.ty(indices);
        let addresses = self.addresses(mem, &self.name(indices), ty);
        self.gather(self.kernel.mem(mem).1, &addresses, ty.lanes, count)
    }

    pub(super) fn gather(
        &mut self,
        dtype: DType,
        addresses: &str,
        lanes: u32,
        count: Option<Value>,
    ) -> String {
        let (memory, align) = (memory_type(dtype, lanes), dtype.bytes());
        let mask = self.mask(count, lanes);
        let zero = self.temporary(memory_zero(dtype, lanes));
        let loaded = format!(
            "llvm.intr.masked.gather {addresses}, {mask}, {zero} {{alignment = {align} : i32}} : \
             ({}, vector<{lanes}xi1>, {memory}) -> {memory}",
            pointers(lanes)
        );
        self.widen_loaded(dtype, loaded, lanes)
    }

    /// What was loaded, as a register value.
    pub(super) fn widen_loaded(&mut self, dtype: DType, loaded: String, lanes: u32) -> String {
        let memory = memory_type(dtype, lanes);
        match dtype {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 => loaded,
            DType::Bool => {
                let loaded = self.temporary(loaded);
                let zero = self.temporary(memory_zero(dtype, lanes));
                format!("arith.cmpi ne, {loaded}, {zero} : {memory}")
            }
            DType::Bf16 => {
                let int = Type::vector(Elem::I32, lanes);
                let t = mlir_type(int);
                let loaded = self.temporary(loaded);
                let wide = self.temporary(format!("arith.extui {loaded} : {memory} to {t}"));
                let sixteen = self.temporary(constant(int, 16));
                let bits = self.temporary(format!("arith.shli {wide}, {sixteen} : {t}"));
                format!("arith.bitcast {bits} : {t} to {}", mlir_type(int.with_elem(Elem::F32)))
            }
        }
    }

    /// A register value as it is stored.
    pub(super) fn narrow_stored(&mut self, dtype: DType, value: Value) -> String {
        let (name, ty) = (self.name(value), self.ty(value));
        let memory = memory_type(dtype, ty.lanes);
        match dtype {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 => name,
            DType::Bool => self.temporary(format!("arith.extui {name} : {} to {memory}", mlir_type(ty))),
            DType::Bf16 => {
                let int = ty.with_elem(Elem::I32);
                let t = mlir_type(int);
                let bits = self.bf16_bits(&name, ty);
                let sixteen = self.temporary(constant(int, 16));
                let high = self.temporary(format!("arith.shrui {bits}, {sixteen} : {t}"));
                self.temporary(format!("arith.trunci {high} : {t} to {memory}"))
            }
        }
    }

    pub(super) fn store(&mut self, at: &At, value: Value, count: Option<Value>) {
        let dtype = self.kernel.mem(at.mem).1;
        let lanes = self.ty(value).lanes;
        let (memory, align) = (memory_type(dtype, lanes), dtype.bytes());
        let stored = self.narrow_stored(dtype, value);
        let index = self.name(at.index);
        match (at.stride, count) {
            (Some(stride), count) => {
                let addresses = self.strided_addresses(at, stride, lanes);
                let mask = self.mask(count, lanes);
                self.line(format!(
                    "llvm.intr.masked.scatter {stored}, {addresses}, {mask} {{alignment = {align} : i32}} : \
                     {memory}, vector<{lanes}xi1> into {}",
                    pointers(lanes)
                ));
            }
            (None, None) => {
                let address = self.address(at.mem, &index);
                self.line(format!(
                    "llvm.store {stored}, {address} {{alignment = {align} : i64}} : {memory}, !llvm.ptr"
                ));
            }
            (None, Some(count)) if lanes == 1 => {
                let any = self.positive(count);
                self.line(format!("scf.if {any} {{"));
                self.depth += 1;
                let address = self.address(at.mem, &index);
                self.line(format!(
                    "llvm.store {stored}, {address} {{alignment = {align} : i64}} : {memory}, !llvm.ptr"
                ));
                self.depth -= 1;
                self.line("}");
            }
            (None, Some(_)) => {
                let address = self.address(at.mem, &index);
                let mask = self.mask(count, lanes);
                self.line(format!(
                    "llvm.intr.masked.store {stored}, {address}, {mask} {{alignment = {align} : i32}} : \
                     {memory}, vector<{lanes}xi1> into !llvm.ptr"
                ));
            }
        }
    }
}

/// Zeros as they lie in memory.
fn memory_zero(dtype: DType, lanes: u32) -> String {
    let zero = if matches!(dtype, DType::F32 | DType::F64) { "0.0" } else { "0" };
    let t = memory_type(dtype, lanes);
    if lanes > 1 {
        format!("arith.constant dense<{zero}> : {t}")
    } else {
        format!("arith.constant {zero} : {t}")
    }
}

fn pointers(lanes: u32) -> String {
    format!("vector<{lanes}x!llvm.ptr>")
}
