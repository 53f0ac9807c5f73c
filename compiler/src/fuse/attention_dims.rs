//! Attention as its kernels see it: batch dimensions, and one group, query, key, head and value dimension.

use super::gemm_dims::{Dim, merge};
use super::{Buffer, Fused, Group, Item, Kind, View};
use crate::graph::{Attention, CompositeKind, Name, Op, OpId, Type};

/// Dimensions by role; strides are of the operands in order, then of what the group writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// Shared by queries and keys, and groups that one stride can't walk.
    pub batch: Vec<Dim>,
    /// Query heads that share keys and values.
    pub group: Dim,
    /// Query positions.
    pub query: Dim,
    /// Key positions.
    pub key: Dim,
    /// Contracted in q·k.
    pub head: Dim,
    /// Of v alone.
    pub value: Dim,
}

impl AttentionDims {
    /// Of a group of kind `Attention` or `AttentionGrad`.
    ///
    /// # Errors
    /// Axes a kernel can't walk, in one sentence.
    pub fn of(
        fused: &Fused,
        group: &Group,
        attention: &Attention,
        op: OpId,
    ) -> Result<AttentionDims, String> {
        let operands = &fused.graph.op(op).operands;
        let views: Vec<View> = operands
            .iter()
            .map(|v| fused.views[v].clone())
            .chain(group.writes.iter().map(|w| w.view.clone()))
            .collect();
        let buffers: Vec<Buffer> = views.iter().map(|v| fused.buffer(v.buffer).clone()).collect();
        let places: Vec<(&View, &Buffer)> = views.iter().zip(&buffers).collect();
        let one = |axes: &[(Name, u64)], what: &str| -> Result<Dim, String> {
            let mut dims = merge(axes, &places);
            match dims.len() {
                0 => Ok(Dim { size: 1, strides: vec![0; places.len()] }),
                1 => Ok(dims.remove(0)),
                _ => {
                    let names: Vec<&str> = axes.iter().map(|(n, _)| n.as_str()).collect();
                    Err(format!("the {what} axes [{}] can't be walked with one stride", names.join(", ")))
                }
            }
        };
        let (q, k, v) = (&views[0], &views[1], &views[2]);
        let axes = |view: &View, keep: &dyn Fn(&Name) -> bool| -> Vec<(Name, u64)> {
            view.axes.iter().filter(|a| keep(&a.name)).map(|a| (a.name.clone(), a.size)).collect()
        };
        let over = |n: &Name| attention.over.contains(n);
        let shared = |n: &Name| !over(n) && *n != attention.query && k.size(n).is_some();
        let mut batch = merge(&axes(q, &shared), &places);
        // Groups that one stride can't walk: keys and values are shared by more batch entries, which their gradients, of
        // stride 0 there, are summed over.
        let own = |n: &Name| !over(n) && *n != attention.query && k.size(n).is_none();
        let mut groups = merge(&axes(q, &own), &places);
        let group = groups.pop().unwrap_or_else(|| Dim { size: 1, strides: vec![0; places.len()] });
        batch.extend(groups);
        if let Some(axis) = axes(k, &|n| *n != attention.key && !over(n) && q.size(n).is_none()).first() {
            return Err(format!("the keys have an axis {} the queries lack", axis.0));
        }
        Ok(AttentionDims {
            batch,
            group,
            query: one(&axes(q, &|n| *n == attention.query), "query")?,
            key: one(&axes(k, &|n| *n == attention.key), "key")?,
            head: one(&axes(q, &over), "head")?,
            value: one(&axes(v, &|n| *n != attention.key && !(shared(n) && q.size(n).is_some())), "value")?,
        })
    }
}

/// Whether some attention of these groups has axes its kernels can't walk.
pub fn has_unwalkable(fused: &Fused, items: &[Item]) -> bool {
    items.iter().any(|item| match item {
        Item::Loop { body, .. } => has_unwalkable(fused, body),
        Item::Turned { item, .. } => has_unwalkable(fused, std::slice::from_ref(item)),
        Item::Start(_) | Item::Done(_) => false,
        Item::Group(id) => {
            let group = fused.group(*id);
            let (Kind::Attention { op } | Kind::AttentionGrad { op, .. }) = group.kind else { return false };
            let attention = attention(&fused.graph.op(op).op);
            attention.is_some_and(|a| AttentionDims::of(fused, group, a, op).is_err())
        }
    })
}

/// The attributes of an attention or its gradient.
pub fn attention(op: &Op) -> Option<&Attention> {
    let Op::Composite(c) = op else { return None };
    let (CompositeKind::Attention(a) | CompositeKind::AttentionGrad(a)) = &c.kind else { return None };
    Some(a)
}

/// Whether heads or values of several axes would have to be walked as one.
pub fn joins_axes(a: &Attention, k: &Type, v: &Type) -> bool {
    let several = |ty: &Type| ty.axes.iter().filter(|axis| axis.size > 1).count() > 1;
    let of_heads =
        Type::new(k.dtype, k.axes.iter().filter(|axis| a.over.contains(&axis.name)).cloned().collect());
    let of_values =
        Type::new(v.dtype, v.axes.iter().filter(|x| x.name != a.key && !k.has(&x.name)).cloned().collect());
    several(&of_heads) || several(&of_values)
}
