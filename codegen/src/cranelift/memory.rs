//! Loads and stores. Cranelift has no masked ones: what touches the first lanes only goes through a stack slot, element
//! by element, unless it turns out that all lanes are touched.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, F32X4, F64, I8, I8X16, I16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{self, InstBuilder, StackSlot, StackSlotData, StackSlotKind};
use mlc_runtime::abi::DType;

use super::kernel::{Emitter, Pieces, arguments, lanes_per_piece, memory, n_pieces, piece_type};
use crate::kir::{At, Elem, MAX_LANES, Mem, Type, Value};

/// Room for the lanes of any vector in memory.
const SLOT_BYTES: u32 = 8 * MAX_LANES;

/// An element in memory as bits.
fn bits_type(dtype: DType) -> ir::Type {
    match dtype {
        DType::Bool => I8,
        DType::Bf16 => I16,
        DType::F32 | DType::I32 => I32,
        DType::F64 | DType::I64 => I64,
    }
}

/// Where the lanes of a masked access are in memory.
#[derive(Clone, Copy)]
enum Lanes {
    /// One after the other from this address on.
    Dense(ir::Value),
    /// From this address on, so many bytes apart.
    Strided(ir::Value, ir::Value),
    /// At this base plus the element index that is in the slot, 8 bytes a lane.
    Listed(ir::Value, StackSlot),
}

impl Emitter<'_> {
    // ---- addresses

    /// Bytes of a number of elements.
    fn bytes(&mut self, dtype: DType, index: ir::Value) -> ir::Value {
        match dtype.bytes().trailing_zeros() {
            0 => index,
            shift => self.b.ins().ishl_imm_u(index, shift as i64),
        }
    }

    fn address(&mut self, mem: Mem, index: ir::Value) -> ir::Value {
        let offset = self.bytes(self.kernel.mem(mem).1, index);
        let base = self.base(mem);
        self.b.ins().iadd(base, offset)
    }

    // ---- elements

    /// A scalar from memory.
    fn load_element(&mut self, dtype: DType, address: ir::Value, offset: i32) -> ir::Value {
        match dtype {
            DType::F32 => self.b.ins().load(F32, memory(), address, offset),
            DType::F64 => self.b.ins().load(F64, memory(), address, offset),
            DType::I32 => self.b.ins().load(I32, memory(), address, offset),
            DType::I64 => self.b.ins().load(I64, memory(), address, offset),
            DType::Bf16 => {
                let half = self.b.ins().uload16(I32, memory(), address, offset);
                let bits = self.b.ins().ishl_imm_u(half, 16);
                self.cast(F32, bits)
            }
            DType::Bool => {
                let byte = self.b.ins().load(I8, memory(), address, offset);
                self.not_zero(byte)
            }
        }
    }

    /// A scalar into memory.
    fn store_element(&mut self, dtype: DType, value: ir::Value, address: ir::Value, offset: i32) {
        match dtype {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 | DType::Bool => {
                self.b.ins().store(memory(), value, address, offset);
            }
            DType::Bf16 => {
                let bits = self.bf16_bits(value);
                let high = self.b.ins().ushr_imm_u(bits, 16);
                self.b.ins().istore16(memory(), high, address, offset);
            }
        }
    }

    // ---- neighbouring elements

    /// `ty.lanes` elements from an address on.
    fn load_dense(&mut self, dtype: DType, ty: Type, address: ir::Value) -> Pieces {
        if !ty.is_vector() {
            return vec![self.load_element(dtype, address, 0)];
        }
        let per = lanes_per_piece(ty.elem);
        let mut pieces = Pieces::new();
        for first in (0..ty.lanes).step_by(per as usize) {
            let offset = |lane: u32| ((first + lane) as u64 * dtype.bytes()) as i32;
            let n = per.min(ty.lanes - first);
            let piece = if n == per {
                self.load_piece(dtype, address, offset(0))
            } else {
                let lanes: Vec<ir::Value> =
                    (0..n).map(|lane| self.load_element(dtype, address, offset(lane))).collect();
                self.join_piece(ty.elem, &lanes)
            };
            pieces.push(piece);
        }
        pieces
    }

    /// A whole piece of a vector.
    fn load_piece(&mut self, dtype: DType, address: ir::Value, offset: i32) -> ir::Value {
        match dtype {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 => {
                let ty = piece_type(Type::vector(Elem::of_memory(dtype), MAX_LANES));
                self.b.ins().load(ty, memory(), address, offset)
            }
            DType::Bf16 => {
                let halves = self.b.ins().uload16x4(memory(), address, offset);
                let bits = self.b.ins().ishl_imm_u(halves, 16);
                self.cast(F32X4, bits)
            }
            DType::Bool => {
                let word = self.b.ins().load(I32, memory(), address, offset);
                let bytes = self.b.ins().scalar_to_vector(I32X4, word);
                let bytes = self.cast(I8X16, bytes);
                let halves = self.b.ins().uwiden_low(bytes);
                let words = self.b.ins().uwiden_low(halves);
                let zero = self.piece_of(Elem::I32, 0);
                self.b.ins().icmp(IntCC::NotEqual, words, zero)
            }
        }
    }

    /// A value to neighbouring elements from an address on.
    fn store_dense(&mut self, dtype: DType, ty: Type, pieces: &[ir::Value], address: ir::Value) {
        if !ty.is_vector() {
            self.store_element(dtype, pieces[0], address, 0);
            return;
        }
        let per = lanes_per_piece(ty.elem);
        for (p, &piece) in pieces.iter().enumerate() {
            let first = p as u32 * per;
            let offset = |lane: u32| ((first + lane) as u64 * dtype.bytes()) as i32;
            let n = per.min(ty.lanes - first);
            if n == per {
                self.store_piece(dtype, piece, address, offset(0));
                continue;
            }
            for lane in 0..n {
                let value = self.lane(&[piece], Type::vector(ty.elem, per), lane);
                self.store_element(dtype, value, address, offset(lane));
            }
        }
    }

    /// A whole piece of a vector.
    fn store_piece(&mut self, dtype: DType, piece: ir::Value, address: ir::Value, offset: i32) {
        let packed = match dtype {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 => piece,
            DType::Bf16 => {
                let bits = self.bf16_bits(piece);
                let high = self.b.ins().ushr_imm_u(bits, 16);
                // Below 2^16, so nothing saturates.
                let halves = self.b.ins().unarrow(high, high);
                let words = self.cast(I64X2, halves);
                self.b.ins().extractlane(words, 0)
            }
            DType::Bool => {
                let one = self.piece_of(Elem::I32, 1);
                let bits = self.b.ins().band(piece, one);
                let halves = self.b.ins().snarrow(bits, bits);
                debug_assert_eq!(self.b.func.dfg.value_type(halves), I16X8);
                let bytes = self.b.ins().snarrow(halves, halves);
                let words = self.cast(I32X4, bytes);
                self.b.ins().extractlane(words, 0)
            }
        };
        self.b.ins().store(memory(), packed, address, offset);
    }

    // ---- loads

    pub(super) fn load(&mut self, at: &At, lanes: u32, count: Option<Value>) -> Pieces {
        let dtype = self.kernel.mem(at.mem).1;
        let ty = Type::vector(Elem::of_memory(dtype), lanes);
        let address = self.address(at.mem, self.scalar(at.index));
        match (at.stride, count) {
            (None, None) => self.load_dense(dtype, ty, address),
            (None, Some(count)) => self.load_first(dtype, ty, address, count),
            (Some(stride), None) => {
                let stride = self.bytes(dtype, self.scalar(stride));
                let mut at = address;
                let mut values = Vec::new();
                for _ in 0..lanes {
                    values.push(self.load_element(dtype, at, 0));
                    at = self.b.ins().iadd(at, stride);
                }
                self.join(ty, &values)
            }
            (Some(stride), Some(count)) => {
                let stride = self.bytes(dtype, self.scalar(stride));
                self.load_through_slot(dtype, ty, Lanes::Strided(address, stride), count)
            }
        }
    }

    pub(super) fn gather(&mut self, mem: Mem, indices: Value, count: Option<Value>) -> Pieces {
        let dtype = self.kernel.mem(mem).1;
        let index_type = self.ty(indices);
        let ty = Type::vector(Elem::of_memory(dtype), index_type.lanes);
        let pieces = self.pieces(indices);
        let narrow = self.lanes(&pieces, index_type);
        let mut wide = Vec::new();
        for lane in narrow {
            let is_wide = index_type.elem == Elem::I64;
            wide.push(if is_wide { lane } else { self.b.ins().sextend(I64, lane) });
        }
        let Some(count) = count else {
            let mut values = Vec::new();
            for index in wide {
                let address = self.address(mem, index);
                values.push(self.load_element(dtype, address, 0));
            }
            return self.join(ty, &values);
        };
        let slot = self.slot(|e| &mut e.indices_slot);
        let list = self.b.ins().stack_addr(I64, slot, 0);
        for (lane, index) in wide.into_iter().enumerate() {
            self.b.ins().store(memory(), index, list, 8 * lane as i32);
        }
        let base = self.base(mem);
        self.load_through_slot(dtype, ty, Lanes::Listed(base, slot), count)
    }

    /// The first `count` of neighbouring elements.
    fn load_first(&mut self, dtype: DType, ty: Type, address: ir::Value, count: Value) -> Pieces {
        let [whole, part, after] = [(); 3].map(|()| self.b.create_block());
        let piece = piece_type(ty);
        let made: Pieces = (0..n_pieces(ty)).map(|_| self.b.append_block_param(after, piece)).collect();
        let all = self.all_lanes(ty, count);
        self.b.ins().brif(all, whole, &[], part, &[]);

        self.b.switch_to_block(whole);
        let loaded = self.load_dense(dtype, ty, address);
        self.b.ins().jump(after, &arguments(loaded));

        self.b.switch_to_block(part);
        let loaded = if ty.is_vector() {
            self.load_through_slot(dtype, ty, Lanes::Dense(address), count)
        } else {
            vec![self.lane_constant(ty.elem, 0)]
        };
        self.b.ins().jump(after, &arguments(loaded));

        self.b.switch_to_block(after);
        made
    }

    /// Zeros into a slot, the first `count` elements over them, and all of it as a value.
    fn load_through_slot(&mut self, dtype: DType, ty: Type, from: Lanes, count: Value) -> Pieces {
        let slot = self.slot(|e| &mut e.lanes_slot);
        let room = self.b.ins().stack_addr(I64, slot, 0);
        let zero = self.piece_of(Elem::I32, 0);
        for offset in (0..ty.lanes as u64 * dtype.bytes()).step_by(16) {
            self.b.ins().store(memory(), zero, room, offset as i32);
        }
        let bits = bits_type(dtype);
        self.for_first_lanes(ty.lanes, count, |e, lane| {
            let from = e.lane_address(dtype, from, lane);
            let element = e.b.ins().load(bits, memory(), from, 0);
            let to = e.lane_address(dtype, Lanes::Dense(room), lane);
            e.b.ins().store(memory(), element, to, 0);
        });
        self.load_dense(dtype, ty, room)
    }

    // ---- stores

    pub(super) fn store(&mut self, at: &At, value: Value, count: Option<Value>) {
        let dtype = self.kernel.mem(at.mem).1;
        let (ty, pieces) = (self.ty(value), self.pieces(value));
        let address = self.address(at.mem, self.scalar(at.index));
        match (at.stride, count) {
            (None, None) => self.store_dense(dtype, ty, &pieces, address),
            (None, Some(count)) => self.store_first(dtype, ty, &pieces, address, count),
            (Some(stride), None) => {
                let stride = self.bytes(dtype, self.scalar(stride));
                let mut at = address;
                for lane in self.lanes(&pieces, ty) {
                    self.store_element(dtype, lane, at, 0);
                    at = self.b.ins().iadd(at, stride);
                }
            }
            (Some(stride), Some(count)) => {
                let stride = self.bytes(dtype, self.scalar(stride));
                self.store_through_slot(dtype, ty, &pieces, Lanes::Strided(address, stride), count);
            }
        }
    }

    /// The first `count` lanes to neighbouring elements.
    fn store_first(
        &mut self,
        dtype: DType,
        ty: Type,
        pieces: &[ir::Value],
        address: ir::Value,
        count: Value,
    ) {
        let [whole, part, after] = [(); 3].map(|()| self.b.create_block());
        let all = self.all_lanes(ty, count);
        self.b.ins().brif(all, whole, &[], part, &[]);

        self.b.switch_to_block(whole);
        self.store_dense(dtype, ty, pieces, address);
        self.b.ins().jump(after, &[]);

        self.b.switch_to_block(part);
        if ty.is_vector() {
            self.store_through_slot(dtype, ty, pieces, Lanes::Dense(address), count);
        }
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(after);
    }

    fn store_through_slot(&mut self, dtype: DType, ty: Type, pieces: &[ir::Value], to: Lanes, count: Value) {
        let slot = self.slot(|e| &mut e.lanes_slot);
        let room = self.b.ins().stack_addr(I64, slot, 0);
        self.store_dense(dtype, ty, pieces, room);
        let bits = bits_type(dtype);
        self.for_first_lanes(ty.lanes, count, |e, lane| {
            let from = e.lane_address(dtype, Lanes::Dense(room), lane);
            let element = e.b.ins().load(bits, memory(), from, 0);
            let to = e.lane_address(dtype, to, lane);
            e.b.ins().store(memory(), element, to, 0);
        });
    }

    // ---- masks

    /// Whether a count covers all lanes.
    fn all_lanes(&mut self, ty: Type, count: Value) -> ir::Value {
        let count = self.scalar(count);
        self.b.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, count, ty.lanes as i64)
    }

    /// A slot of the frame, made on first use. Every masked access is over before the next begins, so all share it.
    fn slot(&mut self, which: impl Fn(&mut Self) -> &mut Option<StackSlot>) -> StackSlot {
        if let Some(slot) = *which(self) {
            return slot;
        }
        let data = StackSlotData::new(StackSlotKind::ExplicitSlot, SLOT_BYTES, 4);
        let slot = self.b.create_sized_stack_slot(data);
        *which(self) = Some(slot);
        slot
    }

    fn lane_address(&mut self, dtype: DType, lanes: Lanes, lane: ir::Value) -> ir::Value {
        match lanes {
            Lanes::Dense(address) => {
                let offset = self.bytes(dtype, lane);
                self.b.ins().iadd(address, offset)
            }
            Lanes::Strided(address, stride) => {
                let offset = self.b.ins().imul(lane, stride);
                self.b.ins().iadd(address, offset)
            }
            Lanes::Listed(base, slot) => {
                let list = self.b.ins().stack_addr(I64, slot, 0);
                let offset = self.b.ins().ishl_imm_u(lane, 3);
                let at = self.b.ins().iadd(list, offset);
                let index = self.b.ins().load(I64, memory(), at, 0);
                let offset = self.bytes(dtype, index);
                self.b.ins().iadd(base, offset)
            }
        }
    }

    /// Runs `body` for the lanes `0..min(count, lanes)`.
    fn for_first_lanes(&mut self, lanes: u32, count: Value, body: impl FnOnce(&mut Self, ir::Value)) {
        let count = self.scalar(count);
        let most = self.b.ins().iconst(I64, lanes as i64);
        let n = self.b.ins().smin(count, most);
        let zero = self.b.ins().iconst(I64, 0);
        let [each, after] = [(); 2].map(|()| self.b.create_block());
        let lane = self.b.append_block_param(each, I64);
        let any = self.b.ins().icmp(IntCC::SignedGreaterThan, n, zero);
        self.b.ins().brif(any, each, &arguments([zero]), after, &[]);

        self.b.switch_to_block(each);
        body(self, lane);
        let next = self.b.ins().iadd_imm_s(lane, 1);
        let more = self.b.ins().icmp(IntCC::SignedLessThan, next, n);
        self.b.ins().brif(more, each, &arguments([next]), after, &[]);
        self.b.switch_to_block(after);
    }
}
