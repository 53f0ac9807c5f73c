//! Random kernels: every op on values of every type in nested loops and conditionals, through buffers and scratch.
//!
//! The number of kernels can be raised with `MLC_RANDOM_KERNELS`, the first seed set with `MLC_RANDOM_SEED`.

use std::collections::BTreeMap;

use super::{Draw, check, fill};
use crate::abi::DType;
use crate::kir::{
    Access, At, BinaryOp, Builder, CompareOp, Elem, Kernel, Mem, ReduceOp, Type, UnaryOp, Value, parse,
    verify,
};

const DTYPES: [DType; 6] = [DType::F32, DType::F64, DType::Bf16, DType::I32, DType::I64, DType::Bool];
const WIDTHS: [u32; 6] = [1, 1, 3, 4, 8, 16];

/// Elements of a region: starts are below 256, strides within ±4, lanes at most 16, plus 64 in front.
const LEN: u64 = 512;

struct Generator {
    draw: Draw,
    b: Builder,
    regions: Vec<Mem>,
    /// Values in scope.
    pool: Vec<Value>,
    ops_left: usize,
}

/// A kernel of about `ops` ops and one tile.
fn kernel(seed: u64, ops: usize) -> Kernel {
    let mut b = Builder::new(1, 1);
    let mut regions: Vec<Mem> = Vec::new();
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        regions.push(b.buffer(&format!("b{i}"), dtype, LEN, Access::ReadWrite));
        regions.push(b.scratch(&format!("s{i}"), dtype, LEN));
    }
    let pool = vec![b.scalar(0), b.tile_begin(), b.tile_end()];
    let mut g = Generator { draw: Draw::new(seed), b, regions, pool, ops_left: ops };
    // Scratch is undefined at first; fill it, for NaNs would soon be everywhere.
    for i in 0..DTYPES.len() {
        g.initialise(g.regions[2 * i], g.regions[2 * i + 1]);
    }
    g.block(0);
    g.store_everything();
    g.b.finish()
}

impl Generator {
    fn initialise(&mut self, from: Mem, to: Mem) {
        let (zero, end) = (self.b.index(0), self.b.index(LEN));
        self.b.for_each(zero, end, 16, |b, i| {
            let value = b.load(from, i, 16);
            b.store(to, i, value);
        });
    }

    fn ty(&mut self) -> Type {
        Type::vector(self.draw.pick(&Elem::ALL), self.draw.pick(&WIDTHS))
    }

    /// A value of this type: one in scope if there is (usually the latest few), else a constant.
    fn value(&mut self, ty: Type) -> Value {
        let fitting: Vec<Value> = self.pool.iter().copied().filter(|&v| self.b.ty(v) == ty).collect();
        if fitting.is_empty() || self.draw.below(8) == 0 {
            let bits = self.draw.lane(ty.elem);
            return self.b.const_bits(ty, bits);
        }
        let recent = fitting.len().min(6);
        let from = if self.draw.below(3) == 0 { 0 } else { fitting.len() - recent };
        fitting[from + self.draw.below(fitting.len() - from)]
    }

    /// An index in `64..320`.
    fn index(&mut self) -> Value {
        let any = self.value(Type::I64);
        let mask = self.b.i64(255);
        let low = self.b.binary(BinaryOp::And, any, mask);
        self.b.add_const(low, 64)
    }

    fn count(&mut self) -> Option<Value> {
        match self.draw.below(3) {
            0 => None,
            1 => Some(self.value(Type::I64)),
            _ => {
                let n = self.draw.below(20) as i64 - 2;
                Some(self.b.i64(n))
            }
        }
    }

    fn stride(&mut self, lanes: u32) -> Option<Value> {
        if lanes == 1 || self.draw.below(3) > 0 {
            return None;
        }
        let stride = self.draw.below(9) as i64 - 4;
        Some(self.b.i64(stride))
    }

    fn block(&mut self, depth: usize) {
        let n = 3 + self.draw.below(12);
        for _ in 0..n {
            if self.ops_left == 0 {
                return;
            }
            self.ops_left -= 1;
            match self.draw.below(24) {
                0..=1 if depth < 3 => self.for_loop(depth),
                2 if depth < 3 => self.conditional(depth),
                3..=4 => self.store(),
                5..=6 => self.load(),
                _ => self.arithmetic(),
            }
        }
        if depth == 0 && self.ops_left > 0 {
            self.block(0);
        }
    }

    fn arithmetic(&mut self) {
        let ty = self.ty();
        let made = match self.draw.below(12) {
            0..=1 => self.unary(ty),
            2..=4 => self.binary(ty),
            5 if ty.elem.is_float() => {
                let [x, y, z] = [ty; 3].map(|t| self.value(t));
                Some(self.b.fma(x, y, z))
            }
            6 => self.compare(ty),
            7 => {
                let condition = if self.draw.below(2) == 0 { Type::I1 } else { ty.with_elem(Elem::I1) };
                let condition = self.value(condition);
                let (x, y) = (self.value(ty), self.value(ty));
                Some(self.b.select(condition, x, y))
            }
            8..=9 => {
                let from = self.value(ty);
                let elem = self.draw.pick(&Elem::ALL);
                Some(self.b.convert(elem, from))
            }
            10 if !ty.elem.is_float() && ty.elem != Elem::I1 => {
                let from = self.value(ty);
                let to = if ty.elem == Elem::I32 { Elem::F32 } else { Elem::F64 };
                Some(self.b.bitcast(to, from))
            }
            _ => self.lanes(ty),
        };
        self.pool.extend(made);
    }

    fn unary(&mut self, ty: Type) -> Option<Value> {
        let op = self.draw.pick(&UnaryOp::ALL);
        let a = self.value(ty);
        op.accepts(ty.elem).then(|| self.b.unary(op, a))
    }

    fn binary(&mut self, ty: Type) -> Option<Value> {
        let op = self.draw.pick(&BinaryOp::ALL);
        let (a, b) = (self.value(ty), self.value(ty));
        op.accepts(ty.elem).then(|| self.b.binary(op, a, b))
    }

    fn compare(&mut self, ty: Type) -> Option<Value> {
        let op = self.draw.pick(&CompareOp::ALL);
        let (a, b) = (self.value(ty), self.value(ty));
        op.accepts(ty.elem).then(|| self.b.compare(op, a, b))
    }

    fn lanes(&mut self, ty: Type) -> Option<Value> {
        let a = self.value(ty);
        if !ty.is_vector() {
            let lanes = self.draw.pick(&WIDTHS);
            return Some(self.b.splat(a, lanes));
        }
        let lane = self.draw.below(ty.lanes as usize) as u32;
        match self.draw.below(4) {
            0 => Some(self.b.extract(a, lane)),
            1 => {
                let scalar = self.value(Type::scalar(ty.elem));
                Some(self.b.insert(a, scalar, lane))
            }
            2 => {
                let other = self.value(ty);
                let width = self.draw.pick(&[3u32, 4, 8, 16]);
                let lanes: Vec<u32> =
                    (0..width).map(|_| self.draw.below(2 * ty.lanes as usize) as u32).collect();
                Some(self.b.shuffle(a, other, &lanes))
            }
            _ => {
                let op = self.draw.pick(&ReduceOp::ALL);
                op.binary().accepts(ty.elem).then(|| self.b.reduce(op, a))
            }
        }
    }

    fn load(&mut self) {
        let mem = self.draw.pick(&self.regions.clone());
        let lanes = self.draw.pick(&WIDTHS);
        let count = self.count();
        let value = if lanes > 1 && self.draw.below(4) == 0 {
            let elem = self.draw.pick(&[Elem::I32, Elem::I64]);
            let ty = Type::vector(elem, lanes);
            let any = self.value(ty);
            let mask = self.b.const_int(ty, LEN as i64 - 1);
            let indices = self.b.binary(BinaryOp::And, any, mask);
            self.b.gather(mem, indices, count)
        } else {
            let at = At { mem, index: self.index(), stride: self.stride(lanes) };
            self.b.load_at(at, lanes, count)
        };
        self.pool.push(value);
    }

    fn store(&mut self) {
        let mem = self.draw.pick(&self.regions.clone());
        let ty = Type::vector(self.b.elem(mem), self.draw.pick(&WIDTHS));
        let (value, count) = (self.value(ty), self.count());
        let at = At { mem, index: self.index(), stride: self.stride(ty.lanes) };
        self.b.store_at(at, value, count);
    }

    fn for_loop(&mut self, depth: usize) {
        let trip = self.draw.below(5) as u64;
        let step = 1 + self.draw.below(2) as i64;
        let (lo, hi) = (self.b.index(0), self.b.index(trip));
        let types: Vec<Type> = (0..self.draw.below(4)).map(|_| self.ty()).collect();
        let init: Vec<Value> = types.iter().map(|&t| self.value(t)).collect();
        let outside = self.pool.clone();
        // The closure needs the generator, which owns the builder: lend it and take it back.
        let mut builder = std::mem::replace(&mut self.b, Builder::new(1, 0));
        let results = builder.for_carried(lo, hi, step, &init, |b, var, carried| {
            std::mem::swap(&mut self.b, b);
            self.pool.push(var);
            self.pool.extend(carried);
            self.block(depth + 1);
            let next = types.iter().map(|&t| self.value(t)).collect();
            std::mem::swap(&mut self.b, b);
            next
        });
        self.b = builder;
        self.pool = outside;
        self.pool.extend(results);
    }

    fn conditional(&mut self, depth: usize) {
        let condition = self.value(Type::I1);
        let types: Vec<Type> = (0..self.draw.below(3)).map(|_| self.ty()).collect();
        let outside = self.pool.clone();
        let mut builder = std::mem::replace(&mut self.b, Builder::new(1, 0));
        let this = std::cell::RefCell::new(&mut *self);
        let side = |b: &mut Builder| {
            let mut guard = this.borrow_mut();
            let g: &mut Generator = &mut guard;
            std::mem::swap(&mut g.b, b);
            g.block(depth + 1);
            let values = types.iter().map(|&t| g.value(t)).collect();
            std::mem::swap(&mut g.b, b);
            g.pool.clone_from(&outside);
            values
        };
        let results = builder.if_else(condition, side, side);
        self.b = builder;
        self.pool = outside;
        self.pool.extend(results);
    }

    /// Makes the latest values visible.
    fn store_everything(&mut self) {
        let latest: Vec<Value> = self.pool.iter().rev().take(60).copied().collect();
        for (i, value) in latest.into_iter().enumerate() {
            let elem = self.b.ty(value).elem;
            let buffers: Vec<Mem> =
                self.regions.iter().copied().filter(|m| matches!(m, Mem::Buffer(_))).collect();
            let Some(&mem) = buffers.iter().find(|&&m| self.b.elem(m) == elem) else { continue };
            let index = self.b.index(16 * (i as u64 % 30));
            self.b.store(mem, index, value);
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn random_kernels_agree() {
    let (count, first) = (number("MLC_RANDOM_KERNELS", 40), number("MLC_RANDOM_SEED", 1));
    let mut coverage: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut cases = Vec::new();
    for seed in first..first + count {
        let kernel = kernel(seed, 60);
        assert_eq!(verify(&kernel), Ok(()), "seed {seed}\n{kernel}");
        let text = kernel.to_string();
        assert_eq!(parse(&text).as_ref(), Ok(&kernel), "seed {seed}");
        count_ops(&text, &mut coverage);
        let mut draw = Draw::new(seed ^ 0xdead_beef);
        let buffers = kernel.buffers.iter().map(|b| fill(&mut draw, b.dtype, b.len)).collect();
        cases.push((kernel, buffers, vec![draw.bits() as i64]));
    }
    check(&cases);
    for ((op, elem), n) in &coverage {
        println!("{op:>14} {elem:<4} {n}");
    }
    let kinds = coverage.keys().map(|(op, _)| op).collect::<std::collections::BTreeSet<_>>().len();
    assert!(count < 40 || kinds >= 45, "only {kinds} kinds of ops: {coverage:?}");
}

/// Counts `op elem` of every line `%n = op elemxN …`.
fn count_ops(text: &str, coverage: &mut BTreeMap<(String, String), usize>) {
    for line in text.lines() {
        let op = line.split(" = ").nth(1).unwrap_or(line.trim_start());
        let mut words = op.split_whitespace();
        let (Some(op), Some(ty)) = (words.next(), words.next()) else { continue };
        let elem = Elem::ALL.iter().map(|e| e.name()).find(|name| ty.starts_with(name)).unwrap_or("");
        *coverage.entry((op.to_string(), elem.to_string())).or_default() += 1;
    }
}
