//! Products whose rows each belong to one of several groups, as tokens belong to experts.
//!
//! Rows lie along one packed axis, sorted by group, every group's part padded to whole tiles; `owner` says whose a row is.
//! A kernel may rely on that: within each aligned run of `tile` rows `owner` is one number, along the axis it never falls,
//! and where it is the number of groups or more the row belongs to none, gives 0 and may be skipped. The meaning needs
//! none of it.
//! Source: Gale et al. 2022 (MegaBlocks, arXiv:2211.15841), §3-5, whose block-sparse products these are.

use super::composites::{Result, fail};
use super::shape::{self, show};
use super::{Axis, Builder, CompareOp, CompositeKind, DType, Name, Op, Type, ValueId};

/// How rows are packed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packing {
    /// The packed axis, in x and owner.
    pub row: Name,
    /// Rows that share an owner; divides the size of the axis.
    pub tile: u64,
}

impl Builder {
    /// Every row times the matrix of its owner.
    ///
    /// ```text
    /// x     [rows.., over..]
    /// w     [group, over.., out..]
    /// owner [rows..] i32
    /// -> y  [rows.., out..] = Σ over `over` of x·w[owner];  0 where owner lies outside 0..group
    /// ```
    /// `rows..` are the packed axis and any others (`batch`).
    ///
    /// # Errors
    /// The operands don't have these axes, or the tile does not divide the packed axis.
    pub fn grouped_dot(
        &mut self,
        x: ValueId,
        w: ValueId,
        owner: ValueId,
        group: &Name,
        over: &[Name],
        packing: &Packing,
    ) -> Result<ValueId> {
        let n = self.needs(w, group, "grouped_dot")?;
        self.packed(owner, packing)?;
        let rows = self.ty(x).without(over);
        let columns = self.ty(w).without(over).without(std::slice::from_ref(group));
        let contracted = over.iter().all(|axis| {
            self.ty(x).size_of(axis).is_some() && self.ty(x).size_of(axis) == self.ty(w).size_of(axis)
        });
        let apart = columns.axes.iter().all(|axis| !rows.has(&axis.name));
        let same = self.ty(x).dtype == self.ty(w).dtype;
        if !contracted || !apart || !same || !rows.same_axes(self.ty(owner)) {
            let [x, w, owner] = [x, w, owner].map(|v| show(self.ty(v)));
            return fail(format!("a grouped product takes rows {x} and matrices {w} of owners {owner}"));
        }
        let mut ty = rows;
        ty.axes.extend(columns.axes);
        let Packing { row, tile } = packing.clone();
        let kind = CompositeKind::GroupedDot { group: group.clone(), over: over.to_vec(), row, tile };
        let results = self.composite(kind, &[x, w, owner], &["x", "w", "owner"], "grouped", |b, args| {
            let own = b.of_owner(args[0], args[2], &Axis::new(group, n));
            let over = over.iter().cloned().chain([group.clone()]).collect();
            vec![b.one(Op::Dot { over }, &[own, args[1]], Some(ty), "y")]
        });
        Ok(results[0])
    }

    /// Products of rows, summed by owner: the derivative of [`Builder::grouped_dot`] by its matrices.
    ///
    /// ```text
    /// a     [rows.., left..]
    /// b     [rows.., right..]
    /// owner [rows..] i32
    /// -> y  [group, left.., right..] = Σ over the rows of each owner of a·b
    /// ```
    ///
    /// # Errors
    /// The operands don't have these axes, or the tile does not divide the packed axis.
    pub fn grouped_outer(
        &mut self,
        a: ValueId,
        b: ValueId,
        owner: ValueId,
        group: &Axis,
        packing: &Packing,
    ) -> Result<ValueId> {
        self.packed(owner, packing)?;
        self.fits_inside(owner, a, "grouped_outer")?;
        self.fits_inside(owner, b, "grouped_outer")?;
        let over = self.ty(owner).names();
        let [left, right] = [a, b].map(|v| self.ty(v).without(&over));
        let apart = left.axes.iter().all(|axis| !right.has(&axis.name) && axis.name != group.name);
        if !apart || right.has(&group.name) || self.ty(a).dtype != self.ty(b).dtype {
            let [a, b, owner] = [a, b, owner].map(|v| show(self.ty(v)));
            return fail(format!("a grouped outer product takes rows {a} and {b} of owners {owner}"));
        }
        let axes = [group.clone()].into_iter().chain(left.axes).chain(right.axes).collect();
        let ty = Type::new(left.dtype, axes);
        let Packing { row, tile } = packing.clone();
        let kind = CompositeKind::GroupedOuter { group: group.clone(), row, tile };
        let results = self.composite(kind, &[a, b, owner], &["a", "b", "owner"], "grouped", |b, args| {
            let own = b.of_owner(args[0], args[2], group);
            vec![b.one(Op::Dot { over }, &[own, args[1]], Some(ty), "y")]
        });
        Ok(results[0])
    }

    /// The rows of x beside each other by owner, 0 in all places but the owner's: `[x's axes.., group]`.
    fn of_owner(&mut self, x: ValueId, owner: ValueId, group: &Axis) -> ValueId {
        let index = self.index(&group.name, group.size);
        let ty = shape::union_type(DType::Bool, &[self.ty(owner), self.ty(index)]);
        let is_owner = self.one(Op::Compare(CompareOp::Eq), &[owner, index], Some(ty), "is_owner");
        let zero = self.constant(self.ty(x).dtype, 0.0);
        self.select(is_owner, x, zero)
    }

    fn packed(&self, owner: ValueId, packing: &Packing) -> Result<()> {
        let rows = self.needs(owner, &packing.row, "a grouped product's owner")?;
        if self.ty(owner).dtype != DType::I32 {
            return fail(format!("owners are i32, got {}", show(self.ty(owner))));
        }
        if packing.tile == 0 || !rows.is_multiple_of(packing.tile) {
            return fail(format!("{}={rows} does not divide into tiles of {}", packing.row, packing.tile));
        }
        Ok(())
    }
}
