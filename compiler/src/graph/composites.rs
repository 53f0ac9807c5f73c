//! Builders of composites: each makes the op together with its meaning region in primitives.
//!
//! The shapes in each doc are the user's; `..` stands for any further axes. All of these report operands that don't fit
//! as a [`ShapeError`]; once an op is built, its meaning is well typed.

use super::shape::{self, ShapeError, show};
use super::{
    Attention, Axis, BinaryOp, Bound, Builder, CompareOp, Composite, CompositeKind, DType, LossHead, Name,
    Op, Pairs, ReduceOp, RegionId, RopeScaling, Type, UnaryOp, ValueId,
};
use std::collections::BTreeMap;

pub(super) type Result<T> = std::result::Result<T, ShapeError>;

/// Element type in which rotary angles, their sines and cosines are computed. An angle is a position times a frequency;
/// in f32 a position of 10⁴ would leave an error of 10⁻³ radians.
const ANGLE: DType = DType::F64;

/// Attributes of an attention before it is built: as [`Attention`].
#[derive(Clone, Debug)]
pub struct AttentionParts {
    /// Query position axis, in q.
    pub query: Name,
    /// Key position axis, in k and v.
    pub key: Name,
    /// Contracted axes of q·k.
    pub over: Vec<Name>,
    /// Scores that can exist.
    pub bound: Bound,
    /// Scalar region, built with [`Builder::open`] and [`Builder::close`].
    pub score: RegionId,
}

impl Builder {
    /// Builds a composite; `meaning` gets the region's arguments and gives its results.
    pub fn composite(
        &mut self,
        kind: CompositeKind,
        operands: &[ValueId],
        names: &[&str],
        result: &str,
        meaning: impl FnOnce(&mut Builder, &[ValueId]) -> Vec<ValueId>,
    ) -> Vec<ValueId> {
        let args: Vec<(Name, Type)> = operands
            .iter()
            .enumerate()
            .map(|(i, v)| (Name::from(names.get(i).copied().unwrap_or("extra")), self.ty(*v).clone()))
            .collect();
        let (_, args) = self.open(&args);
        let results = meaning(self, &args);
        let meaning = self.close(results);
        self.op(Op::Composite(Composite { kind, meaning }), operands, None, result)
    }

    /// `x · sigmoid(x)`. Source: Elfwing, Uchibe, Doya 2017 (arXiv:1702.03118), §2.
    pub fn silu(&mut self, x: ValueId) -> ValueId {
        let s = self.unary(UnaryOp::Sigmoid, x);
        self.mul(x, s)
    }

    /// `x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`. Source: Hendrycks, Gimpel 2016 (arXiv:1606.08415), §2.
    pub fn gelu_tanh(&mut self, x: ValueId) -> ValueId {
        let x2 = self.mul(x, x);
        let x3 = self.mul(x2, x);
        let cubic = self.scale(x3, 0.044715);
        let inner = self.add(x, cubic);
        let inner = self.scale(inner, (2.0 / std::f64::consts::PI).sqrt());
        let t = self.unary(UnaryOp::Tanh, inner);
        self.half_of_one_plus(x, t)
    }

    /// `x/2 · (1 + erf(x/√2))`. Source: Hendrycks, Gimpel 2016 (arXiv:1606.08415), §2.
    pub fn gelu_erf(&mut self, x: ValueId) -> ValueId {
        let inner = self.scale(x, std::f64::consts::FRAC_1_SQRT_2);
        let t = self.unary(UnaryOp::Erf, inner);
        self.half_of_one_plus(x, t)
    }

    fn half_of_one_plus(&mut self, x: ValueId, t: ValueId) -> ValueId {
        let one = self.constant(self.ty(x).dtype, 1.0);
        let t = self.add(t, one);
        let half = self.scale(x, 0.5);
        self.mul(half, t)
    }

    /// Mean over axes.
    pub fn mean(&mut self, x: ValueId, axes: &[Name]) -> ValueId {
        let count: u64 = axes.iter().filter_map(|a| self.ty(x).size_of(a)).product();
        let sum = self.reduce(ReduceOp::Sum, x, axes);
        let n = self.constant(self.ty(sum).dtype, count as f64);
        self.div(sum, n)
    }

    /// Mean over axes that may be cut later, as the batch is into microbatches: the count follows the graph's own axes.
    pub fn counted_mean(&mut self, x: ValueId, axes: &[Name]) -> ValueId {
        let dtype = self.ty(x).dtype;
        let counted = self.ty(x).axes.iter().filter(|a| axes.contains(&a.name)).cloned().collect();
        let one = self.constant(dtype, 1.0);
        let ones = self.broadcast(one, &Type::new(dtype, counted));
        let count = self.reduce(ReduceOp::Sum, ones, axes);
        let sum = self.reduce(ReduceOp::Sum, x, axes);
        self.div(sum, count)
    }

    /// Exponentials shifted by their row's maximum.
    ///
    /// ```text
    /// x [.., axis] -> e [.., axis] exp(x − m);  sum [..];  m [..] the maximum, or 0 where it is −inf
    /// ```
    /// A row that is −inf throughout has e = 0 and sum = 0, never NaN.
    pub(super) fn shifted_exp(&mut self, x: ValueId, axis: &Name) -> (ValueId, ValueId, ValueId) {
        let dtype = self.ty(x).dtype;
        let max = self.reduce(ReduceOp::Max, x, std::slice::from_ref(axis));
        let lowest = self.constant(dtype, f64::NEG_INFINITY);
        let zero = self.constant(dtype, 0.0);
        let empty = self.compare(CompareOp::Eq, max, lowest);
        let max = self.select(empty, zero, max);
        let shifted = self.sub(x, max);
        let e = self.unary(UnaryOp::Exp, shifted);
        let sum = self.reduce(ReduceOp::Sum, e, std::slice::from_ref(axis));
        (e, sum, max)
    }

    /// `e / sum`, 0 where the sum is 0.
    fn normalised(&mut self, e: ValueId, sum: ValueId) -> ValueId {
        let dtype = self.ty(e).dtype;
        let zero = self.constant(dtype, 0.0);
        let one = self.constant(dtype, 1.0);
        let empty = self.compare(CompareOp::Eq, sum, zero);
        let sum = self.select(empty, one, sum);
        self.div(e, sum)
    }

    /// Softmax along one axis; a row whose every element is −inf gives 0.
    ///
    /// ```text
    /// x [.., axis] -> y [.., axis]
    /// ```
    ///
    /// # Errors
    /// `x` lacks the axis.
    pub fn softmax(&mut self, x: ValueId, axis: &Name) -> Result<ValueId> {
        self.needs(x, axis, "softmax")?;
        let kind = CompositeKind::Softmax { axis: axis.clone() };
        let results = self.composite(kind, &[x], &["x"], "p", |b, args| {
            let (e, sum, _) = b.shifted_exp(args[0], axis);
            vec![b.normalised(e, sum)]
        });
        Ok(results[0])
    }

    /// Root-mean-square normalisation with a gain.
    ///
    /// ```text
    /// x [.., axis], w [axes of x] -> y [.., axis] = x · rstd · w;  rstd [..] = 1/√(mean(x²) + eps)
    /// ```
    ///
    /// # Errors
    /// `x` lacks the axis, or `w` has an axis that `x` lacks.
    pub fn rms_norm(&mut self, x: ValueId, w: ValueId, axis: &Name, eps: f64) -> Result<(ValueId, ValueId)> {
        self.needs(x, axis, "rms_norm")?;
        self.fits_inside(w, x, "rms_norm")?;
        let kind = CompositeKind::RmsNorm { axis: axis.clone(), eps };
        let results = self.composite(kind, &[x, w], &["x", "w"], "norm", |b, args| {
            let (x, w) = (args[0], args[1]);
            let squares = b.mul(x, x);
            let mean = b.mean(squares, std::slice::from_ref(axis));
            let rstd = b.rstd(mean, eps);
            let y = b.mul(x, rstd);
            vec![b.mul(y, w), rstd]
        });
        Ok((results[0], results[1]))
    }

    /// Layer normalisation with gain and bias.
    ///
    /// ```text
    /// x [.., axis], w, b [axes of x] -> y [.., axis] = (x − mean) · rstd · w + b;  mean [..];  rstd [..] = 1/√(variance + eps)
    /// ```
    ///
    /// # Errors
    /// `x` lacks the axis, or `w` or `b` has an axis that `x` lacks.
    pub fn layer_norm(
        &mut self,
        x: ValueId,
        w: ValueId,
        bias: ValueId,
        axis: &Name,
        eps: f64,
    ) -> Result<(ValueId, ValueId, ValueId)> {
        self.needs(x, axis, "layer_norm")?;
        self.fits_inside(w, x, "layer_norm")?;
        self.fits_inside(bias, x, "layer_norm")?;
        let kind = CompositeKind::LayerNorm { axis: axis.clone(), eps };
        let results = self.composite(kind, &[x, w, bias], &["x", "w", "b"], "norm", |b, args| {
            let over = std::slice::from_ref(axis);
            let mean = b.mean(args[0], over);
            let centred = b.sub(args[0], mean);
            let squares = b.mul(centred, centred);
            let variance = b.mean(squares, over);
            let rstd = b.rstd(variance, eps);
            let y = b.mul(centred, rstd);
            let y = b.mul(y, args[1]);
            vec![b.add(y, args[2]), mean, rstd]
        });
        Ok((results[0], results[1], results[2]))
    }

    fn rstd(&mut self, square: ValueId, eps: f64) -> ValueId {
        let eps = self.constant(self.ty(square).dtype, eps);
        let sum = self.add(square, eps);
        self.unary(UnaryOp::Rsqrt, sum)
    }

    /// Rotary position embedding: turns pair j of `axis` (size n) by the angle `at · θ^(−2j/n)`.
    ///
    /// ```text
    /// x [.., axis], at i32 [axes of x] -> y [.., axis] = x·cos + rotate_pairs(x)·sin
    /// ```
    /// Cosines and sines depend on positions alone, so they leave the layer loop once the meaning is inlined.
    ///
    /// # Errors
    /// `axis` is missing or odd, or `at` is no integer tensor over other axes of `x`.
    pub fn rope(
        &mut self,
        x: ValueId,
        at: ValueId,
        axis: &Name,
        theta: f64,
        pairs: Pairs,
    ) -> Result<ValueId> {
        self.scaled_rope(x, at, axis, theta, pairs, None)
    }

    /// As [`Builder::rope`], with the frequencies stretched as [`RopeScaling`] says.
    ///
    /// # Errors
    /// As [`Builder::rope`].
    pub fn scaled_rope(
        &mut self,
        x: ValueId,
        at: ValueId,
        axis: &Name,
        theta: f64,
        pairs: Pairs,
        scaling: Option<RopeScaling>,
    ) -> Result<ValueId> {
        let n = self.needs(x, axis, "rope")?;
        if n % 2 != 0 {
            return fail(format!("rope turns pairs along {axis}, whose size {n} is odd"));
        }
        self.fits_inside(at, x, "rope")?;
        if self.ty(at).dtype != DType::I32 || self.ty(at).has(axis) {
            let shown = show(self.ty(at));
            return fail(format!("rope takes i32 positions without the axis {axis}, got {shown}"));
        }
        let kind = CompositeKind::Rope { axis: axis.clone(), theta, pairs, scaling };
        let results = self.composite(kind, &[x, at], &["x", "at"], "rope", |b, args| {
            let (x, at) = (args[0], args[1]);
            let frequency = b.rotary_frequency(axis, n, theta, pairs);
            let frequency = match scaling {
                Some(scaling) => b.stretched(frequency, scaling),
                None => frequency,
            };
            let at = b.cast(at, ANGLE);
            let angle = b.binary_union(BinaryOp::Mul, at, frequency);
            let dtype = b.ty(x).dtype;
            let [cos, sin] = [UnaryOp::Cos, UnaryOp::Sin].map(|f| {
                let t = b.unary(f, angle);
                b.cast(t, dtype)
            });
            let kept = b.mul(x, cos);
            let turned = b.one(Op::RotatePairs { axis: axis.clone(), pairs }, &[x], None, "turned");
            let turned = b.mul(turned, sin);
            vec![b.add(kept, turned)]
        });
        Ok(results[0])
    }

    /// `θ^(−2j/n)` along `axis`; j is the pair an element belongs to.
    fn rotary_frequency(&mut self, axis: &Name, n: u64, theta: f64, pairs: Pairs) -> ValueId {
        let index = self.index(axis, n);
        let (op, by) = match pairs {
            Pairs::Half => (BinaryOp::Rem, n / 2),
            Pairs::Interleaved => (BinaryOp::Div, 2),
        };
        let by = self.constant(DType::I32, by as f64);
        let j = self.binary(op, index, by);
        let j = self.cast(j, ANGLE);
        let exponent = self.scale(j, -2.0 * theta.ln() / n as f64);
        self.unary(UnaryOp::Exp, exponent)
    }

    /// `f·((1 − s)/factor + s)` with `s` = (original·f/2π − low) / (high − low) kept in [0, 1].
    fn stretched(&mut self, f: ValueId, scaling: RopeScaling) -> ValueId {
        let RopeScaling { factor, low, high, original } = scaling;
        let per_turn = original / (2.0 * std::f64::consts::PI * (high - low));
        let s = self.scale(f, per_turn);
        let start = self.constant(ANGLE, -low / (high - low));
        let s = self.add(s, start);
        let (zero, one) = (self.constant(ANGLE, 0.0), self.constant(ANGLE, 1.0));
        let s = self.binary(BinaryOp::Max, s, zero);
        let s = self.binary(BinaryOp::Min, s, one);
        // (1 − s)/factor + s = 1/factor + s·(1 − 1/factor)
        let kept = self.scale(s, 1.0 - 1.0 / factor);
        let least = self.constant(ANGLE, 1.0 / factor);
        let share = self.add(kept, least);
        self.mul(f, share)
    }

    /// Cross-entropy of logits against class ids.
    ///
    /// ```text
    /// logits [.., axis], targets i32 [..] -> loss [..] = lse − logits[target];  lse [..] = log Σ exp(logits)
    /// ```
    ///
    /// # Errors
    /// `logits` lacks the axis, or the targets are not ids over the other axes.
    pub fn cross_entropy(
        &mut self,
        logits: ValueId,
        targets: ValueId,
        axis: &Name,
    ) -> Result<(ValueId, ValueId)> {
        self.needs(logits, axis, "cross_entropy")?;
        let rest = self.ty(logits).without(std::slice::from_ref(axis));
        if self.ty(targets).dtype != DType::I32 || !self.ty(targets).same_axes(&rest) {
            let (logits, targets) = (show(self.ty(logits)), show(self.ty(targets)));
            return fail(format!(
                "cross_entropy over {axis} of {logits} takes {}, got {targets}",
                show(&rest.with_dtype(DType::I32))
            ));
        }
        let kind = CompositeKind::CrossEntropy { axis: axis.clone() };
        let results = self.composite(kind, &[logits, targets], &["logits", "targets"], "ce", |b, args| {
            let (_, sum, max) = b.shifted_exp(args[0], axis);
            let log = b.unary(UnaryOp::Log, sum);
            let lse = b.add(max, log);
            let picked = b.one(Op::Gather { axis: axis.clone() }, args, Some(b.ty(lse).clone()), "picked");
            vec![b.sub(lse, picked), lse]
        });
        Ok((results[0], results[1]))
    }

    /// Attention: `o = softmax over key of score(q·k) times v`.
    ///
    /// ```text
    /// q   [shared.., query, group.., over..]
    /// k   [shared.., key, over..]
    /// v   [shared.., key, value..]
    /// extras   any of the scores' axes [shared.., group.., query, key]
    /// -> o   [shared.., query, group.., value..]
    /// -> lse [shared.., query, group..]   log Σ exp(score) over key; −inf on a row with no key, whose o is 0
    /// ```
    ///
    /// # Errors
    /// The operands don't have these axes, or the score region doesn't fit them.
    pub fn attention(
        &mut self,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        extras: &[ValueId],
        parts: AttentionParts,
    ) -> Result<(ValueId, ValueId)> {
        let (short, dtype) = (self.ty(q).dtype, shape::sum_dtype(self.ty(q).dtype));
        let scores = self.attention_axes(q, k, v, extras, &parts)?;
        self.score_fits(dtype, extras, parts.score)?;
        let attention = Attention {
            query: parts.query,
            key: parts.key,
            over: parts.over,
            bound: parts.bound,
            learned: Vec::new(),
            score: parts.score,
        };
        let operands: Vec<ValueId> = [q, k, v].iter().chain(extras).copied().collect();
        let kind = CompositeKind::Attention(attention.clone());
        let o_type = self.attention_result(&attention, q, v);
        let results = self.composite(kind, &operands, &["q", "k", "v"], "attn", |b, args| {
            let score = b.attention_scores(&attention, args[0], args[1], &args[3..], &scores)[0];
            let (e, sum, max) = b.shifted_exp(score, &attention.key);
            let p = b.normalised(e, sum);
            let over = vec![attention.key.clone()];
            let v = b.cast(args[2], dtype);
            let o = b.one(Op::Dot { over }, &[p, v], Some(o_type.with_dtype(dtype)), "o");
            let o = b.cast(o, short);
            let log = b.unary(UnaryOp::Log, sum);
            vec![o, b.add(max, log)]
        });
        Ok((results[0], results[1]))
    }

    /// Type of o: the axes of q that are not contracted, in q's order, then v's own.
    fn attention_result(&self, a: &Attention, q: ValueId, v: ValueId) -> Type {
        let mut ty = self.ty(q).without(&a.over);
        let own: Vec<Axis> = self
            .ty(v)
            .axes
            .iter()
            .filter(|axis| axis.name != a.key && !ty.has(&axis.name))
            .cloned()
            .collect();
        ty.axes.extend(own);
        ty
    }

    /// Results of the score region over whole tensors: the product of q and k, then the region element by element.
    pub(crate) fn attention_scores(
        &mut self,
        a: &Attention,
        q: ValueId,
        k: ValueId,
        extras: &[ValueId],
        axes: &Type,
    ) -> Vec<ValueId> {
        let s = self.dot(q, k, &a.over);
        let position = |b: &mut Builder, axis: &Name| {
            let size = axes.size_of(axis).expect("checked by attention_axes");
            b.index(axis, size)
        };
        let query = position(self, &a.query);
        let key = position(self, &a.key);
        let mut args = vec![s, query, key];
        args.extend(extras);
        let results = self.inline_elementwise(a.score, &args, axes);
        results.into_iter().map(|r| self.broadcast(r, axes)).collect()
    }

    /// The type of the scores.
    ///
    /// # Errors
    /// See [`Builder::attention`].
    fn attention_axes(
        &self,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        extras: &[ValueId],
        parts: &AttentionParts,
    ) -> Result<Type> {
        let (q, k, v) = (self.ty(q), self.ty(k), self.ty(v));
        for ty in [k, v] {
            if ty.dtype != q.dtype {
                return fail(format!("attention mixes {} and {}", show(q), show(ty)));
            }
        }
        for (what, ty, axis) in [("q", q, &parts.query), ("k", k, &parts.key), ("v", v, &parts.key)] {
            if !ty.has(axis) {
                return fail(format!("attention's {what}, {}, lacks the position axis {axis}", show(ty)));
            }
        }
        for axis in &parts.over {
            if q.size_of(axis) != k.size_of(axis) || !q.has(axis) {
                return fail(format!("q {} and k {} don't share the axis {axis}", show(q), show(k)));
            }
        }
        let shared = k.without(&parts.over).without(std::slice::from_ref(&parts.key));
        for axis in &shared.axes {
            if !q.axes.contains(axis) || !v.axes.contains(axis) {
                return fail(format!(
                    "axis {}={} of k is neither contracted nor shared by q {} and v {}",
                    axis.name,
                    axis.size,
                    show(q),
                    show(v)
                ));
            }
        }
        let scores = shape::union_type(shape::sum_dtype(q.dtype), &[q, k]).without(&parts.over);
        if let Some(axis) = v.axes.iter().find(|a| scores.has(&a.name) && !k.has(&a.name)) {
            return fail(format!(
                "axis {}={} of v {} is one of queries alone",
                axis.name,
                axis.size,
                show(v)
            ));
        }
        let key = Axis::new(&parts.key, k.size_of(&parts.key).expect("checked above"));
        if !v.axes.contains(&key) || q.has(&parts.key) || k.has(&parts.query) || v.has(&parts.query) {
            return fail(format!(
                "position axes {} and {} don't fit q {}, k {}, v {}",
                parts.query,
                parts.key,
                show(q),
                show(k),
                show(v)
            ));
        }
        for extra in extras.iter().map(|e| self.ty(*e)) {
            if let Some(axis) = extra.axes.iter().find(|a| !scores.axes.contains(a)) {
                let (extra, scores) = (show(extra), show(&scores));
                return fail(format!(
                    "axis {} of extra {extra} is not one of the scores' {scores}",
                    axis.name
                ));
            }
        }
        Ok(scores)
    }

    fn score_fits(&self, dtype: DType, extras: &[ValueId], score: RegionId) -> Result<()> {
        let region = self.graph.region(score);
        let mut expected = vec![dtype, DType::I32, DType::I32];
        expected.extend(extras.iter().map(|e| self.ty(*e).dtype));
        let args: Vec<DType> = region.args.iter().map(|v| self.ty(*v).dtype).collect();
        let scalar = region.args.iter().chain(&region.results).all(|v| self.ty(*v).axes.is_empty());
        let result = region.results.first().map(|v| self.ty(*v).dtype);
        if args == expected && scalar && result == Some(dtype) {
            Ok(())
        } else {
            fail(format!("a score region takes scalars {expected:?} and gives {dtype:?}, got {args:?}"))
        }
    }

    /// Applies a region of scalar element-wise ops to tensors, which broadcast by name. `whole` has all their axes, in
    /// the order that results get.
    ///
    /// # Panics
    /// If an op of the region is not element-wise on scalars.
    pub fn inline_elementwise(&mut self, region: RegionId, args: &[ValueId], whole: &Type) -> Vec<ValueId> {
        let source = self.graph.region(region).clone();
        let mut map: BTreeMap<ValueId, ValueId> =
            source.args.iter().copied().zip(args.iter().copied()).collect();
        for id in source.ops {
            let node = self.graph.op(id).clone();
            let operands: Vec<ValueId> = node.operands.iter().map(|v| map[v]).collect();
            let dtype = self.ty(node.results[0]).dtype;
            let types: Vec<&Type> = operands.iter().map(|v| self.ty(*v)).collect();
            let union = shape::union_type(dtype, &types);
            let ty =
                Type::new(dtype, whole.axes.iter().filter(|a| union.axes.contains(a)).cloned().collect());
            let name = self.graph.value_name(node.results[0]).clone();
            let value = self.one(node.op, &operands, Some(ty), &name);
            map.insert(node.results[0], value);
        }
        source.results.iter().map(|v| map[v]).collect()
    }

    /// Summed cross-entropy of a linear head, to be evaluated in chunks of tokens.
    ///
    /// ```text
    /// x [tokens.., over..], w [over.., vocab], targets i32 [tokens..], weight? [axes of tokens]
    /// -> loss_sum []  = Σ weight · cross_entropy(x·w, targets)
    /// ```
    ///
    /// # Errors
    /// The operands don't have these axes, or a chunk does not divide its axis.
    pub fn loss_head(
        &mut self,
        x: ValueId,
        w: ValueId,
        targets: ValueId,
        weight: Option<ValueId>,
        head: LossHead,
    ) -> Result<ValueId> {
        self.needs(w, &head.vocab, "loss_head")?;
        for (axis, chunk) in &head.chunks {
            let size = self.needs(targets, axis, "loss_head")?;
            if *chunk == 0 || !size.is_multiple_of(*chunk) {
                return fail(format!("{axis}={size} does not divide into chunks of {chunk}"));
            }
        }
        let w_axes = self.ty(w).without(&head.over).without(std::slice::from_ref(&head.vocab));
        let tokens = self.ty(x).without(&head.over);
        if !w_axes.axes.is_empty() || !tokens.same_axes(self.ty(targets)) {
            let (x, w, targets) = (show(self.ty(x)), show(self.ty(w)), show(self.ty(targets)));
            return fail(format!("a loss head takes x {x} and w {w} against targets {targets}"));
        }
        let mut operands = vec![x, w, targets];
        if let Some(weight) = weight {
            self.fits_inside(weight, targets, "loss_head")?;
            operands.push(weight);
        }
        let LossHead { over, vocab, .. } = head.clone();
        let names = ["x", "w", "targets", "weight"];
        let results = self.composite(CompositeKind::LossHead(head), &operands, &names, "loss", |b, args| {
            let logits = b.dot(args[0], args[1], &over);
            let (loss, _) = b.cross_entropy(logits, args[2], &vocab).expect("checked above");
            let loss = match args.get(3) {
                Some(weight) => b.mul(loss, *weight),
                None => loss,
            };
            vec![b.sum_to(loss, &Type::scalar(DType::F32))]
        });
        Ok(results[0])
    }

    /// The size of an axis that must be there.
    pub(super) fn needs(&self, x: ValueId, axis: &Name, what: &str) -> Result<u64> {
        let ty = self.ty(x);
        match ty.size_of(axis) {
            Some(size) => Ok(size),
            None => fail(format!("{what} along {axis}, which {} lacks", show(ty))),
        }
    }

    /// Every axis of `part` is one of `whole`.
    pub(super) fn fits_inside(&self, part: ValueId, whole: ValueId, what: &str) -> Result<()> {
        let (part, whole) = (self.ty(part), self.ty(whole));
        match part.axes.iter().find(|a| !whole.axes.contains(a)) {
            None => Ok(()),
            Some(a) => fail(format!(
                "{what}: axis {}={} of {} is not in {}",
                a.name,
                a.size,
                show(part),
                show(whole)
            )),
        }
    }
}

pub(super) fn fail<T>(message: String) -> Result<T> {
    Err(ShapeError { message })
}
