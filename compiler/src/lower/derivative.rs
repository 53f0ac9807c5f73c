//! Derivative of a scalar region by its first input, for attention scores.
//!
//! Forward accumulation (Griewank, Walther 2008, *Evaluating Derivatives*, §3.1): next to each op that depends on the input
//! stands the op of its tangent; the others have tangent 0 and cost nothing.

use mlc_codegen::abi::DType;
use mlc_codegen::program::{BinaryOp, CompareOp, Region, ScalarId, ScalarOp, UnaryOp};

struct Ops {
    ops: Vec<ScalarOp>,
}

impl Ops {
    fn push(&mut self, op: ScalarOp) -> ScalarId {
        self.ops.push(op);
        ScalarId(self.ops.len() as u32 - 1)
    }

    fn constant(&mut self, c: f64) -> ScalarId {
        self.push(ScalarOp::Const(DType::F32, c))
    }

    fn mul(&mut self, a: ScalarId, b: ScalarId) -> ScalarId {
        self.push(ScalarOp::Binary(BinaryOp::Mul, a, b))
    }

    fn add(&mut self, a: ScalarId, b: ScalarId) -> ScalarId {
        self.push(ScalarOp::Binary(BinaryOp::Add, a, b))
    }

    fn sub(&mut self, a: ScalarId, b: ScalarId) -> ScalarId {
        self.push(ScalarOp::Binary(BinaryOp::Sub, a, b))
    }

    fn neg(&mut self, a: ScalarId) -> ScalarId {
        self.push(ScalarOp::Unary(UnaryOp::Neg, a))
    }

    fn unary(&mut self, op: UnaryOp, a: ScalarId) -> ScalarId {
        self.push(ScalarOp::Unary(op, a))
    }

    fn div(&mut self, a: ScalarId, b: ScalarId) -> ScalarId {
        self.push(ScalarOp::Binary(BinaryOp::Div, a, b))
    }
}

/// `d(result 0)/d(input 0)` of an f32 region without reductions, 0 where the result is −inf. The region's own ops come
/// first and keep their numbers.
///
/// # Errors
/// An op whose derivative is not defined here, by name.
pub fn by_first_input(region: &Region) -> Result<Region, String> {
    let mut out = Ops { ops: region.ops.clone() };
    let mut tangents: Vec<Option<ScalarId>> = Vec::new();
    for (i, op) in region.ops.iter().enumerate() {
        let tangent = tangent(&mut out, op, ScalarId(i as u32), &tangents)?;
        tangents.push(tangent);
    }
    let result = region.results[0];
    let slope = match tangents[result.0 as usize] {
        Some(t) => t,
        None => out.constant(0.0),
    };
    let lowest = out.constant(f64::NEG_INFINITY);
    let removed = out.push(ScalarOp::Compare(CompareOp::Eq, result, lowest));
    let zero = out.constant(0.0);
    let slope = out.push(ScalarOp::Select(removed, zero, slope));
    Ok(Region { ops: out.ops, results: vec![slope] })
}

/// Tangent of `op`, whose value is `y`; `None` where it does not depend on the input.
fn tangent(
    out: &mut Ops,
    op: &ScalarOp,
    y: ScalarId,
    tangents: &[Option<ScalarId>],
) -> Result<Option<ScalarId>, String> {
    let of = |id: ScalarId| tangents[id.0 as usize];
    Ok(match *op {
        ScalarOp::Input(0) => Some(out.constant(1.0)),
        ScalarOp::Input(_) | ScalarOp::Index(_) | ScalarOp::Const(..) | ScalarOp::Compare(..) => None,
        ScalarOp::Unary(u, a) => match of(a) {
            None => None,
            Some(t) => Some(unary(out, u, a, y, t)?),
        },
        ScalarOp::Binary(b, x, z) => binary(out, b, (x, of(x)), (z, of(z)), y)?,
        ScalarOp::MulAdd(a, b, c) => {
            let product = binary(out, BinaryOp::Mul, (a, of(a)), (b, of(b)), y)?;
            match (product, of(c)) {
                (Some(p), Some(t)) => Some(out.add(p, t)),
                (p, t) => p.or(t),
            }
        }
        ScalarOp::Select(c, a, b) => match (of(a), of(b)) {
            (None, None) => None,
            (s, t) => {
                let s = s.unwrap_or_else(|| out.constant(0.0));
                let t = t.unwrap_or_else(|| out.constant(0.0));
                Some(out.push(ScalarOp::Select(c, s, t)))
            }
        },
        ScalarOp::Cast(DType::F32, a) => of(a),
        ScalarOp::Cast(_, a) => match of(a) {
            None => None,
            Some(_) => return Err("cast".into()),
        },
        ScalarOp::Reduce(..) => return Err("reduce".into()),
    })
}

/// `f'(a)·t`.
fn unary(out: &mut Ops, u: UnaryOp, a: ScalarId, y: ScalarId, t: ScalarId) -> Result<ScalarId, String> {
    Ok(match u {
        UnaryOp::Neg => out.neg(t),
        UnaryOp::Abs => {
            let zero = out.constant(0.0);
            let below = out.push(ScalarOp::Compare(CompareOp::Lt, a, zero));
            let minus = out.neg(t);
            out.push(ScalarOp::Select(below, minus, t))
        }
        UnaryOp::Exp => out.mul(t, y),
        UnaryOp::Log => out.div(t, a),
        UnaryOp::Sqrt => {
            let half = out.constant(0.5);
            let h = out.mul(t, half);
            out.div(h, y)
        }
        UnaryOp::Rsqrt => {
            // −y/(2a)
            let c = out.constant(-0.5);
            let ty = out.mul(t, y);
            let scaled = out.mul(ty, c);
            out.div(scaled, a)
        }
        UnaryOp::Tanh => {
            let one = out.constant(1.0);
            let square = out.mul(y, y);
            let slope = out.sub(one, square);
            out.mul(t, slope)
        }
        UnaryOp::Sigmoid => {
            let one = out.constant(1.0);
            let rest = out.sub(one, y);
            let slope = out.mul(y, rest);
            out.mul(t, slope)
        }
        UnaryOp::Sin => {
            let slope = out.unary(UnaryOp::Cos, a);
            out.mul(t, slope)
        }
        UnaryOp::Cos => {
            let slope = out.unary(UnaryOp::Sin, a);
            let product = out.mul(t, slope);
            out.neg(product)
        }
        UnaryOp::Erf => {
            // 2/√π · e^(−a²)
            let square = out.mul(a, a);
            let minus = out.neg(square);
            let bell = out.unary(UnaryOp::Exp, minus);
            let c = out.constant(std::f64::consts::FRAC_2_SQRT_PI);
            let slope = out.mul(bell, c);
            out.mul(t, slope)
        }
        UnaryOp::Floor => out.constant(0.0),
        UnaryOp::Not => return Err("not".into()),
    })
}

fn binary(
    out: &mut Ops,
    b: BinaryOp,
    (x, dx): (ScalarId, Option<ScalarId>),
    (z, dz): (ScalarId, Option<ScalarId>),
    y: ScalarId,
) -> Result<Option<ScalarId>, String> {
    if dx.is_none() && dz.is_none() {
        return Ok(None);
    }
    let both = |out: &mut Ops, p: Option<ScalarId>, q: Option<ScalarId>| match (p, q) {
        (Some(p), Some(q)) => Some(out.add(p, q)),
        (p, q) => p.or(q),
    };
    Ok(match b {
        BinaryOp::Add => both(out, dx, dz),
        BinaryOp::Sub => {
            let minus = dz.map(|t| out.neg(t));
            both(out, dx, minus)
        }
        BinaryOp::Mul => {
            let p = dx.map(|t| out.mul(t, z));
            let q = dz.map(|t| out.mul(t, x));
            both(out, p, q)
        }
        BinaryOp::Div => {
            // (dx − y·dz)/z
            let minus = dz.map(|t| {
                let p = out.mul(t, y);
                out.neg(p)
            });
            let top = both(out, dx, minus);
            top.map(|t| out.div(t, z))
        }
        BinaryOp::Max | BinaryOp::Min => {
            let compare = if b == BinaryOp::Max { CompareOp::Ge } else { CompareOp::Le };
            let first = out.push(ScalarOp::Compare(compare, x, z));
            let p = dx.unwrap_or_else(|| out.constant(0.0));
            let q = dz.unwrap_or_else(|| out.constant(0.0));
            Some(out.push(ScalarOp::Select(first, p, q)))
        }
        BinaryOp::Pow | BinaryOp::Rem | BinaryOp::And | BinaryOp::Or => {
            return Err(format!("{b:?}").to_lowercase());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlc_codegen::program::reference::{Precision, evaluate};
    use mlc_codegen::program::{KernelSpec, LoopsSpec, Operand};

    /// The first result of a region at one point.
    fn at(region: &Region, inputs: &[f64]) -> f64 {
        let operand = |buffer: u32| Operand { buffer, dtype: DType::F64, offset: 0, strides: vec![] };
        let n = inputs.len() as u32;
        let spec = KernelSpec::Map(LoopsSpec {
            dims: vec![],
            reduced: 0,
            inputs: (0..n).map(operand).collect(),
            n_scalars: 0,
            region: region.clone(),
            outputs: vec![operand(n)],
        });
        let mut buffers: Vec<Vec<u8>> = inputs.iter().map(|x| x.to_le_bytes().to_vec()).collect();
        buffers.push(vec![0; 8]);
        evaluate(&spec, &buffers, &[], Precision::Exact)[0].value.float
    }

    /// Compares with central differences, which are good to about h² times the third derivative.
    fn check(ops: Vec<ScalarOp>, inputs: &[f64]) {
        const H: f64 = 1e-5;
        let region = Region { results: vec![ScalarId(ops.len() as u32 - 1)], ops };
        let slope = by_first_input(&region).unwrap();
        let moved = |h: f64| at(&region, &[&[inputs[0] + h], &inputs[1..]].concat());
        let want = (moved(H) - moved(-H)) / (2.0 * H);
        let got = at(&slope, inputs);
        assert!(
            (got - want).abs() < 1e-6 * (1.0 + want.abs()),
            "{region:?} at {inputs:?}: {got}, not {want}"
        );
    }

    #[test]
    fn by_first_input_knows_every_function() {
        use UnaryOp::*;
        for u in [Neg, Abs, Exp, Log, Sqrt, Rsqrt, Tanh, Sigmoid, Sin, Cos, Erf, Floor] {
            for x in [0.3, 0.9, 1.7] {
                check(vec![ScalarOp::Input(0), ScalarOp::Unary(u, ScalarId(0))], &[x]);
            }
        }
        check(vec![ScalarOp::Input(0), ScalarOp::Unary(Abs, ScalarId(0))], &[-0.4]);
    }

    #[test]
    fn by_first_input_knows_every_operator_on_both_sides() {
        use BinaryOp::*;
        for b in [Add, Sub, Mul, Div, Max, Min] {
            for (x, y) in [(0.4, 1.3), (1.3, 0.4)] {
                for (l, r) in [(0, 1), (1, 0), (0, 0)] {
                    let op = ScalarOp::Binary(b, ScalarId(l), ScalarId(r));
                    // Max and min of a value and itself have a kink only in the formula.
                    check(vec![ScalarOp::Input(0), ScalarOp::Input(1), op], &[x, y]);
                }
            }
        }
        let fused = ScalarOp::MulAdd(ScalarId(0), ScalarId(1), ScalarId(0));
        check(vec![ScalarOp::Input(0), ScalarOp::Input(1), fused], &[0.7, 1.9]);
    }

    #[test]
    fn by_first_input_is_zero_where_the_score_is_removed() {
        // Soft-capped scores of Gemma 2 (arXiv:2408.00118) with a mask: 5·tanh(s/5), or −inf.
        let capped = |removed: f64| {
            vec![
                ScalarOp::Input(0),
                ScalarOp::Const(DType::F32, 5.0),
                ScalarOp::Binary(BinaryOp::Div, ScalarId(0), ScalarId(1)),
                ScalarOp::Unary(UnaryOp::Tanh, ScalarId(2)),
                ScalarOp::Binary(BinaryOp::Mul, ScalarId(3), ScalarId(1)),
                ScalarOp::Const(DType::F32, removed),
                ScalarOp::Const(DType::F32, 0.5),
                ScalarOp::Compare(CompareOp::Gt, ScalarId(5), ScalarId(6)),
                ScalarOp::Const(DType::F32, f64::NEG_INFINITY),
                ScalarOp::Select(ScalarId(7), ScalarId(8), ScalarId(4)),
            ]
        };
        check(capped(0.0), &[2.0]);
        let region = Region { ops: capped(1.0), results: vec![ScalarId(9)] };
        assert_eq!(at(&by_first_input(&region).unwrap(), &[2.0]), 0.0);
    }

    #[test]
    fn by_first_input_names_what_it_does_not_know() {
        let region = Region {
            ops: vec![ScalarOp::Input(0), ScalarOp::Cast(DType::I32, ScalarId(0))],
            results: vec![ScalarId(1)],
        };
        assert_eq!(by_first_input(&region), Err("cast".into()));
    }
}
