//! Runs steps over a register file and memory.

use mlc_runtime::abi::DType;

use super::word::{binary_fn, compare_fn, convert_fn, f32_of, round_bf16, unary_fn, word32};
use super::{Binding, Region, Slot, Step};
use crate::kir::{BinaryOp, Elem, ReduceOp};

pub(super) struct Machine<'a> {
    pub(super) registers: &'a mut [u64],
    pub(super) spaces: &'a mut [Vec<u8>],
    pub(super) buffers: &'a [Binding],
    pub(super) scratch: Vec<u8>,
    pub(super) regions: &'a [Region],
    pub(super) lines: &'a [String],
    pub(super) spare: Vec<u64>,
}

impl Machine<'_> {
    pub(super) fn steps(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.step(step)?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            &Step::Unary { op, elem, n, to, a } => self.lanes1(n, to, a, unary_fn(op, elem)),
            &Step::Binary { op, elem, n, to, a, b } => self.binary(op, elem, n, to, a, b),
            &Step::Fma { elem, n, to, a, b, c } => self.fma(elem, n, to, a, b, c),
            &Step::Compare { op, elem, n, to, a, b } => {
                let compare = compare_fn(op, elem);
                self.lanes2(n, to, a, b, |x, y| compare(x, y) as u64);
            }
            &Step::Select { per_lane, n, to, c, a, b } => {
                for i in 0..n {
                    let condition = self.registers[(c + if per_lane { i } else { 0 }) as usize] & 1 == 1;
                    self.registers[(to + i) as usize] =
                        self.registers[(if condition { a } else { b } + i) as usize];
                }
            }
            &Step::Convert { from, elem, n, to, a } => self.lanes1(n, to, a, convert_fn(from, elem)),
            &Step::Copy { n, to, a } => self.registers.copy_within(a as usize..(a + n) as usize, to as usize),
            &Step::Splat { n, to, a } => {
                let value = self.registers[a as usize];
                self.registers[to as usize..(to + n) as usize].fill(value);
            }
            &Step::Insert { n, to, a, s, lane } => {
                self.registers.copy_within(a as usize..(a + n) as usize, to as usize);
                self.registers[(to + lane) as usize] = self.registers[s as usize];
            }
            Step::Shuffle { to, from } => {
                for (i, &slot) in from.iter().enumerate() {
                    self.registers[*to as usize + i] = self.registers[slot as usize];
                }
            }
            &Step::Reduce { op, elem, n, to, a } => self.reduce(op, elem, n, to, a),
            &Step::Load { region, index, stride, count, n, to, line } => {
                self.load(region, index, stride, count, n, to, line)?;
            }
            &Step::Gather { region, wide, indices, count, n, to, line } => {
                let active = self.active(count, n);
                for i in 0..n {
                    let word = self.registers[(indices + i) as usize];
                    let index = if wide { word as i64 } else { word as i32 as i64 };
                    self.registers[(to + i) as usize] =
                        if i < active { self.read(region, index, line)? } else { 0 };
                }
            }
            &Step::Store { region, index, stride, count, n, value, line } => {
                self.store(region, index, stride, count, n, value, line)?;
            }
            Step::For { var, lo, hi, step, enter, body, next, leave } => {
                let mut i = self.registers[*lo as usize] as i64;
                let hi = self.registers[*hi as usize] as i64;
                let step = self.registers[*step as usize] as i64;
                enter.run(self.registers, &mut self.spare);
                while i < hi {
                    self.registers[*var as usize] = i as u64;
                    self.steps(body)?;
                    next.run(self.registers, &mut self.spare);
                    let Some(following) = i.checked_add(step) else { break };
                    i = following;
                }
                leave.run(self.registers, &mut self.spare);
            }
            Step::If { condition, then, then_moves, otherwise, otherwise_moves } => {
                let taken = self.registers[*condition as usize] & 1 == 1;
                let (steps, moves) = if taken { (then, then_moves) } else { (otherwise, otherwise_moves) };
                self.steps(steps)?;
                moves.run(self.registers, &mut self.spare);
            }
        }
        Ok(())
    }

    fn lanes1(&mut self, n: u32, to: Slot, a: Slot, f: impl Fn(u64) -> u64) {
        for i in 0..n {
            self.registers[(to + i) as usize] = f(self.registers[(a + i) as usize]);
        }
    }

    #[inline(always)]
    fn lanes2(&mut self, n: u32, to: Slot, a: Slot, b: Slot, f: impl Fn(u64, u64) -> u64) {
        for i in 0..n {
            self.registers[(to + i) as usize] =
                f(self.registers[(a + i) as usize], self.registers[(b + i) as usize]);
        }
    }

    /// The commonest ops get a loop of their own, the others go through a function pointer.
    fn binary(&mut self, op: BinaryOp, elem: Elem, n: u32, to: Slot, a: Slot, b: Slot) {
        match (op, elem) {
            (BinaryOp::Add, Elem::I64) => self.lanes2(n, to, a, b, u64::wrapping_add),
            (BinaryOp::Mul, Elem::I64) => self.lanes2(n, to, a, b, u64::wrapping_mul),
            (BinaryOp::Add, Elem::F32) => self.lanes2(n, to, a, b, |x, y| word32(f32_of(x) + f32_of(y))),
            (BinaryOp::Sub, Elem::F32) => self.lanes2(n, to, a, b, |x, y| word32(f32_of(x) - f32_of(y))),
            (BinaryOp::Mul, Elem::F32) => self.lanes2(n, to, a, b, |x, y| word32(f32_of(x) * f32_of(y))),
            (op, elem) => self.lanes2(n, to, a, b, binary_fn(op, elem)),
        }
    }

    fn fma(&mut self, elem: Elem, n: u32, to: Slot, a: Slot, b: Slot, c: Slot) {
        for i in 0..n {
            let [x, y, z] = [a, b, c].map(|slot| self.registers[(slot + i) as usize]);
            self.registers[(to + i) as usize] = match elem {
                Elem::F64 => f64::from_bits(x).mul_add(f64::from_bits(y), f64::from_bits(z)).to_bits(),
                Elem::F32 | Elem::I1 | Elem::I32 | Elem::I64 => {
                    word32(f32_of(x).mul_add(f32_of(y), f32_of(z)))
                }
            };
        }
    }

    fn reduce(&mut self, op: ReduceOp, elem: Elem, n: u32, to: Slot, a: Slot) {
        let f = binary_fn(op.binary(), elem);
        let mut lanes = std::mem::take(&mut self.spare);
        lanes.clear();
        lanes.extend_from_slice(&self.registers[a as usize..(a + n) as usize]);
        while lanes.len() > 1 {
            let half = lanes.len().next_power_of_two() / 2;
            for i in half..lanes.len() {
                lanes[i - half] = f(lanes[i - half], lanes[i]);
            }
            lanes.truncate(half);
        }
        self.registers[to as usize] = lanes[0];
        self.spare = lanes;
    }

    /// How many of `n` lanes touch memory.
    fn active(&self, count: Option<Slot>, n: u32) -> u32 {
        count.map_or(n, |slot| (self.registers[slot as usize] as i64).clamp(0, n as i64) as u32)
    }

    fn load(
        &mut self,
        region: u32,
        index: Slot,
        stride: Option<Slot>,
        count: Option<Slot>,
        n: u32,
        to: Slot,
        line: u32,
    ) -> Result<(), String> {
        let base = self.registers[index as usize] as i64;
        let stride = stride.map_or(1, |s| self.registers[s as usize] as i64);
        let active = self.active(count, n);
        for i in 0..n {
            let word = if i < active { self.read(region, at_lane(base, stride, i), line)? } else { 0 };
            self.registers[(to + i) as usize] = word;
        }
        Ok(())
    }

    fn store(
        &mut self,
        region: u32,
        index: Slot,
        stride: Option<Slot>,
        count: Option<Slot>,
        n: u32,
        value: Slot,
        line: u32,
    ) -> Result<(), String> {
        let base = self.registers[index as usize] as i64;
        let stride = stride.map_or(1, |s| self.registers[s as usize] as i64);
        for i in 0..self.active(count, n) {
            let word = self.registers[(value + i) as usize];
            self.write(region, at_lane(base, stride, i), word, line)?;
        }
        Ok(())
    }

    /// The bytes from element `index` of a region on.
    #[inline(always)]
    fn bytes(&mut self, region: u32, index: i64, line: u32) -> Result<&mut [u8], String> {
        let r = &self.regions[region as usize];
        if index < 0 || index as u64 >= r.len {
            return Err(format!(
                "index {index} is outside `{}`, which has {} elements, in `{}`",
                r.name, r.len, self.lines[line as usize]
            ));
        }
        let (memory, base) = match self.buffers.get(region as usize) {
            Some(binding) => (self.spaces.get_mut(binding.space).map(Vec::as_mut_slice), binding.offset),
            None => (Some(self.scratch.as_mut_slice()), r.offset),
        };
        let (start, size) = (base + index as u64 * r.dtype.bytes(), r.dtype.bytes());
        memory.and_then(|m| m.get_mut(start as usize..(start + size) as usize)).ok_or_else(|| {
            format!(
                "`{}` reaches beyond its memory space at index {index}, in `{}`",
                r.name, self.lines[line as usize]
            )
        })
    }

    #[inline(always)]
    fn read(&mut self, region: u32, index: i64, line: u32) -> Result<u64, String> {
        let dtype = self.regions[region as usize].dtype;
        let bytes = self.bytes(region, index, line)?;
        Ok(match dtype {
            DType::F32 | DType::I32 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as u64,
            DType::Bf16 => (u16::from_le_bytes([bytes[0], bytes[1]]) as u64) << 16,
            DType::Bool => (bytes[0] != 0) as u64,
            DType::F64 | DType::I64 => u64::from_le_bytes([
                bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
            ]),
        })
    }

    #[inline(always)]
    fn write(&mut self, region: u32, index: i64, word: u64, line: u32) -> Result<(), String> {
        let dtype = self.regions[region as usize].dtype;
        let bytes = self.bytes(region, index, line)?;
        match dtype {
            DType::F32 | DType::I32 => bytes.copy_from_slice(&(word as u32).to_le_bytes()),
            DType::Bf16 => bytes.copy_from_slice(&((round_bf16(word as u32) >> 16) as u16).to_le_bytes()),
            DType::Bool => bytes[0] = word as u8 & 1,
            DType::F64 | DType::I64 => bytes.copy_from_slice(&word.to_le_bytes()),
        }
        Ok(())
    }
}

pub(super) fn at_lane(base: i64, stride: i64, lane: u32) -> i64 {
    base.wrapping_add(stride.wrapping_mul(lane as i64))
}
