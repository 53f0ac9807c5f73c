//! Lanes and pieces: constants, taking vectors apart and putting them together, reductions.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::immediates::{Ieee32, Ieee64};
use cranelift_codegen::ir::types::{I8X16, I32};
use cranelift_codegen::ir::{self, ConstantData, Endianness, InstBuilder, MemFlagsData};

use super::kernel::{Emitter, Pieces, lane_type, lanes_per_piece, n_pieces, vector_type};
use crate::kir::{Elem, ReduceOp, Type, Value};

/// Bytes of a piece of a vector.
const PIECE_BYTES: u32 = 16;

impl Emitter<'_> {
    /// The bits of a piece as another type of as many bits.
    pub(super) fn cast(&mut self, ty: ir::Type, piece: ir::Value) -> ir::Value {
        if self.b.func.dfg.value_type(piece) == ty {
            return piece;
        }
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), piece)
    }

    // ---- constants

    /// One lane in a register of its own.
    pub(super) fn lane_constant(&mut self, elem: Elem, bits: u64) -> ir::Value {
        match elem {
            Elem::I1 | Elem::I32 | Elem::I64 => self.b.ins().iconst(lane_type(elem), bits as i64),
            Elem::F32 => self.b.ins().f32const(Ieee32::with_bits(bits as u32)),
            Elem::F64 => self.b.ins().f64const(Ieee64::with_bits(bits)),
        }
    }

    /// A piece with these lanes.
    fn piece_constant(&mut self, elem: Elem, lanes: impl Iterator<Item = u64>) -> ir::Value {
        let bytes: Vec<u8> = match elem {
            Elem::I1 => lanes.flat_map(|l| (0u32.wrapping_sub(l as u32 & 1)).to_le_bytes()).collect(),
            Elem::I32 | Elem::F32 => lanes.flat_map(|l| (l as u32).to_le_bytes()).collect(),
            Elem::I64 | Elem::F64 => lanes.flat_map(u64::to_le_bytes).collect(),
        };
        let constant = self.b.func.dfg.constants.insert(ConstantData::from(bytes));
        self.b.ins().vconst(vector_type(elem), constant)
    }

    /// A piece with the same bits in every lane.
    pub(super) fn piece_of(&mut self, elem: Elem, bits: u64) -> ir::Value {
        let n = lanes_per_piece(elem) as usize;
        self.piece_constant(elem, std::iter::repeat_n(bits, n))
    }

    /// A scalar or a piece of a vector, as `like` is, with the same bits in every lane.
    pub(super) fn same(&mut self, elem: Elem, bits: u64, like: ir::Value) -> ir::Value {
        if self.b.func.dfg.value_type(like).is_vector() {
            self.piece_of(elem, bits)
        } else {
            self.lane_constant(elem, bits)
        }
    }

    pub(super) fn constant(&mut self, ty: Type, bits: u64) -> Pieces {
        if !ty.is_vector() {
            return vec![self.lane_constant(ty.elem, bits)];
        }
        let piece = self.piece_of(ty.elem, bits);
        vec![piece; n_pieces(ty)]
    }

    pub(super) fn iota(&mut self, ty: Type) -> Pieces {
        let n = lanes_per_piece(ty.elem) as u64;
        let each = |p: usize| self.piece_constant(ty.elem, (0..n).map(|l| p as u64 * n + l));
        (0..n_pieces(ty)).map(each).collect()
    }

    // ---- single lanes

    /// A scalar `i1` as a lane of a vector: no or all bits.
    pub(super) fn mask_lane(&mut self, scalar: ir::Value) -> ir::Value {
        let wide = self.b.ins().uextend(I32, scalar);
        self.b.ins().ineg(wide)
    }

    pub(super) fn splat(&mut self, ty: Type, scalar: ir::Value) -> Pieces {
        let scalar = if ty.elem == Elem::I1 { self.mask_lane(scalar) } else { scalar };
        let piece = self.b.ins().splat(vector_type(ty.elem), scalar);
        vec![piece; n_pieces(ty)]
    }

    /// Lane `lane` of a value; scalars have one.
    pub(super) fn lane(&mut self, pieces: &[ir::Value], ty: Type, lane: u32) -> ir::Value {
        if !ty.is_vector() {
            return pieces[0];
        }
        let n = lanes_per_piece(ty.elem);
        let found = self.b.ins().extractlane(pieces[(lane / n) as usize], (lane % n) as u8);
        if ty.elem == Elem::I1 { self.not_zero(found) } else { found }
    }

    /// All lanes of a value.
    pub(super) fn lanes(&mut self, pieces: &[ir::Value], ty: Type) -> Vec<ir::Value> {
        (0..ty.lanes).map(|lane| self.lane(pieces, ty, lane)).collect()
    }

    /// A value from its lanes.
    pub(super) fn join(&mut self, ty: Type, lanes: &[ir::Value]) -> Pieces {
        if !ty.is_vector() {
            return lanes.to_vec();
        }
        lanes.chunks(lanes_per_piece(ty.elem) as usize).map(|lanes| self.join_piece(ty.elem, lanes)).collect()
    }

    /// A piece of a vector from its first lanes.
    pub(super) fn join_piece(&mut self, elem: Elem, lanes: &[ir::Value]) -> ir::Value {
        let bits: Vec<ir::Value> = match elem {
            Elem::I1 => lanes.iter().map(|&lane| self.mask_lane(lane)).collect(),
            Elem::I32 | Elem::I64 | Elem::F32 | Elem::F64 => lanes.to_vec(),
        };
        let first = self.b.ins().scalar_to_vector(vector_type(elem), bits[0]);
        let rest = bits.iter().enumerate().skip(1);
        rest.fold(first, |piece, (i, &lane)| self.b.ins().insertlane(piece, lane, i as u8))
    }

    pub(super) fn insert(&mut self, a: Value, scalar: Value, lane: u32) -> Pieces {
        let (ty, mut pieces, scalar) = (self.ty(a), self.pieces(a), self.scalar(scalar));
        let scalar = if ty.elem == Elem::I1 { self.mask_lane(scalar) } else { scalar };
        let n = lanes_per_piece(ty.elem);
        let piece = &mut pieces[(lane / n) as usize];
        *piece = self.b.ins().insertlane(*piece, scalar, (lane % n) as u8);
        pieces
    }

    // ---- shuffles

    pub(super) fn shuffle(&mut self, a: Value, b: Value, lanes: &[u32]) -> Pieces {
        let ty = self.ty(a);
        let n = lanes_per_piece(ty.elem);
        let (left, right) = (self.pieces(a), self.pieces(b));
        let source = |lane: u32| {
            let (pieces, lane) = if lane < ty.lanes { (&left, lane) } else { (&right, lane - ty.lanes) };
            (pieces[(lane / n) as usize], lane % n)
        };
        let sources: Vec<(ir::Value, u32)> = lanes.iter().map(|&lane| source(lane)).collect();
        sources.chunks(n as usize).map(|lanes| self.gather_lanes(ty.elem, lanes)).collect()
    }

    /// A piece of a vector whose first lanes are these lanes of pieces.
    pub(super) fn gather_lanes(&mut self, elem: Elem, lanes: &[(ir::Value, u32)]) -> ir::Value {
        let in_place =
            |(i, &(piece, lane)): (usize, &(ir::Value, u32))| piece == lanes[0].0 && lane as usize == i;
        if lanes.iter().enumerate().all(in_place) {
            return lanes[0].0;
        }
        let mut pieces: Vec<ir::Value> = Vec::new();
        for &(piece, _) in lanes {
            if !pieces.contains(&piece) {
                pieces.push(piece);
            }
        }
        // The first two at once, then one more at a time into the lanes that are its own.
        let second = *pieces.get(1).unwrap_or(&pieces[0]);
        let pick = |(i, &(piece, lane)): (usize, &(ir::Value, u32))| match piece {
            p if p == pieces[0] => (0, lane),
            p if p == second => (1, lane),
            _ => (0, i as u32),
        };
        let picks: Vec<(u32, u32)> = lanes.iter().enumerate().map(pick).collect();
        let mut made = self.shuffle_pieces(elem, pieces[0], second, &picks);
        for &other in pieces.iter().skip(2) {
            let pick = |(i, &(piece, lane)): (usize, &(ir::Value, u32))| {
                if piece == other { (1, lane) } else { (0, i as u32) }
            };
            let picks: Vec<(u32, u32)> = lanes.iter().enumerate().map(pick).collect();
            made = self.shuffle_pieces(elem, made, other, &picks);
        }
        made
    }

    /// Lane `i` of the result is lane `picks[i].1` of the first piece or, if `picks[i].0` is 1, of the second.
    fn shuffle_pieces(
        &mut self,
        elem: Elem,
        first: ir::Value,
        second: ir::Value,
        picks: &[(u32, u32)],
    ) -> ir::Value {
        let bytes = PIECE_BYTES / lanes_per_piece(elem);
        let lane = |i: u32| picks.get(i as usize).copied().unwrap_or((0, i));
        let mask: Vec<u8> = (0..PIECE_BYTES)
            .map(|byte| {
                let (piece, lane) = lane(byte / bytes);
                (piece * PIECE_BYTES + lane * bytes + byte % bytes) as u8
            })
            .collect();
        let mask = self.b.func.dfg.immediates.push(ConstantData::from(mask));
        let (first, second) = (self.cast(I8X16, first), self.cast(I8X16, second));
        let made = self.b.ins().shuffle(first, second, mask);
        self.cast(vector_type(elem), made)
    }

    // ---- reductions

    /// The tree of [`Op::Reduce`](crate::kir::Op::Reduce): pieces as long as a half is whole pieces, then lanes.
    pub(super) fn reduce(&mut self, op: ReduceOp, a: Value) -> ir::Value {
        let (elem, mut n, mut pieces) = (self.ty(a).elem, self.ty(a).lanes, self.pieces(a));
        let (op, per) = (op.binary(), lanes_per_piece(elem));
        while n > per {
            let half = n.next_power_of_two() / 2;
            let (high, combined) = ((half / per) as usize, n - half);
            for i in 0..combined.div_ceil(per) as usize {
                let sum = self.binary_piece(op, elem, pieces[i], pieces[high + i]);
                let (whole, old) = (combined - i as u32 * per, pieces[i]);
                let lanes: Vec<_> = (0..per).map(|l| (if l < whole { sum } else { old }, l)).collect();
                pieces[i] = self.gather_lanes(elem, &lanes);
            }
            pieces.truncate(high);
            n = half;
        }
        let mut lanes = self.lanes(&pieces, Type::vector(elem, n));
        while lanes.len() > 1 {
            let half = lanes.len().next_power_of_two() / 2;
            let high = lanes.split_off(half);
            for (low, high) in lanes.iter_mut().zip(high) {
                *low = self.binary_piece(op, elem, *low, high);
            }
        }
        lanes[0]
    }

    /// A scalar `i1` from any integer: whether it is not 0.
    pub(super) fn not_zero(&mut self, x: ir::Value) -> ir::Value {
        self.b.ins().icmp_imm_s(IntCC::NotEqual, x, 0)
    }
}
