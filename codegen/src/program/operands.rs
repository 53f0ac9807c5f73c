//! The operands of a kernel spec, each with the iteration space it is seen from.

use super::{AttentionShape, KernelSpec, LoopsSpec, Operand};

/// How a spec uses one operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use<'a> {
    /// The operand.
    pub operand: &'a Operand,
    /// Sizes its strides go with.
    pub dims: Vec<u64>,
    /// Whether it is written (it may be read too).
    pub writes: bool,
    /// Elements from the buffer's start to behind the last one touched.
    pub extent: u64,
}

impl<'a> Use<'a> {
    pub(super) fn new(operand: &'a Operand, dims: &[u64], writes: bool) -> Use<'a> {
        let span = dims.iter().zip(&operand.strides).map(|(&d, &s)| d.saturating_sub(1).saturating_mul(s));
        let extent = span.fold(operand.offset.saturating_add(1), u64::saturating_add);
        Use { operand, dims: dims.to_vec(), writes, extent }
    }

    /// Also steps `count − 1` times by `stride`, as a looked-up axis does.
    fn along(mut self, count: u64, stride: u64) -> Use<'a> {
        self.extent = self.extent.saturating_add(count.saturating_sub(1).saturating_mul(stride));
        self
    }
}

impl KernelSpec {
    /// Every operand, in the order of the spec's fields.
    pub fn uses(&self) -> Vec<Use<'_>> {
        match self {
            KernelSpec::Map(s) | KernelSpec::Rows(s) => loops(s),
            KernelSpec::Gemm(s) => {
                let with = |last: &[u64]| [&s.batch[..], last].concat();
                let mn = with(&[s.m, s.n]);
                let mut uses = vec![
                    Use::new(&s.a, &with(&[s.m, s.k]), false),
                    Use::new(&s.b, &with(&[s.k, s.n]), false),
                    Use::new(&s.c, &mn, true),
                ];
                uses.extend(s.extras.iter().map(|e| Use::new(e, &mn, false)));
                uses
            }
            KernelSpec::Attention(s) => {
                let d = Dims::of(&s.shape);
                let mut uses = vec![
                    Use::new(&s.q, &d.q, false),
                    Use::new(&s.k, &d.k, false),
                    Use::new(&s.v, &d.v, false),
                    Use::new(&s.o, &d.o, true),
                    Use::new(&s.lse, &d.row, true),
                ];
                uses.extend(s.shape.extras.iter().map(|e| Use::new(e, &d.score, false)));
                uses
            }
            KernelSpec::AttentionGrad(s) => {
                let d = Dims::of(&s.shape);
                let mut uses = vec![
                    Use::new(&s.q, &d.q, false),
                    Use::new(&s.k, &d.k, false),
                    Use::new(&s.v, &d.v, false),
                    Use::new(&s.d_o, &d.o, false),
                    Use::new(&s.lse, &d.row, false),
                    Use::new(&s.delta, &d.row, false),
                ];
                uses.extend(s.shape.extras.iter().map(|e| Use::new(e, &d.score, false)));
                let of: &[&Vec<u64>] = match s.part {
                    super::AttentionGradPart::Query => &[&d.q],
                    super::AttentionGradPart::KeyValue => &[&d.k, &d.v],
                    super::AttentionGradPart::Extra(_) => &[&d.score],
                };
                uses.extend(s.outputs.iter().zip(of).map(|(o, dims)| Use::new(o, dims, true)));
                uses
            }
            KernelSpec::Gather(s) => vec![
                Use::new(&s.table, &s.dims, false).along(s.axis_size, s.axis_stride),
                Use::new(&s.ids, &s.dims, false),
                Use::new(&s.out, &s.dims, true),
            ],
            KernelSpec::Scatter(s) => vec![
                Use::new(&s.updates, &s.dims, false),
                Use::new(&s.ids, &s.dims, false),
                Use::new(&s.out, &s.dims, true).along(s.axis_size, s.axis_stride),
            ],
            KernelSpec::Custom(s) => {
                s.arguments.iter().map(|a| Use::new(&a.operand, &a.dims, a.written)).collect()
            }
            KernelSpec::Scan(s) => {
                vec![Use::new(&s.input, &s.dims, false), Use::new(&s.out, &s.dims, true)]
            }
        }
    }

    /// Scalar arguments of a launch.
    pub fn n_scalars(&self) -> usize {
        match self {
            KernelSpec::Map(s) | KernelSpec::Rows(s) => s.n_scalars as usize,
            KernelSpec::Attention(s) => 2 * s.shape.has_bases as usize,
            KernelSpec::AttentionGrad(s) => 2 * s.shape.has_bases as usize,
            KernelSpec::Gemm(_)
            | KernelSpec::Gather(_)
            | KernelSpec::Scatter(_)
            | KernelSpec::Scan(_)
            | KernelSpec::Custom(_) => 0,
        }
    }

    /// Buffers of a launch: one more than the highest number an operand names.
    pub fn n_buffers(&self) -> usize {
        self.uses().iter().map(|u| u.operand.buffer as usize + 1).max().unwrap_or(0)
    }
}

fn loops(s: &LoopsSpec) -> Vec<Use<'_>> {
    let inputs = s.inputs.iter().map(|o| Use::new(o, &s.dims, false));
    inputs.chain(s.outputs.iter().map(|o| Use::new(o, &s.dims, true))).collect()
}

/// Iteration spaces of the attention kernels' operands.
struct Dims {
    q: Vec<u64>,
    k: Vec<u64>,
    v: Vec<u64>,
    o: Vec<u64>,
    row: Vec<u64>,
    score: Vec<u64>,
}

impl Dims {
    fn of(s: &AttentionShape) -> Dims {
        let with = |last: &[u64]| [&s.batch[..], last].concat();
        Dims {
            q: with(&[s.group, s.sq, s.hd]),
            k: with(&[s.sk, s.hd]),
            v: with(&[s.sk, s.hv]),
            o: with(&[s.group, s.sq, s.hv]),
            row: with(&[s.group, s.sq]),
            score: with(&[s.group, s.sq, s.sk]),
        }
    }
}
