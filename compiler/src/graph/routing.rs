//! Mixture of experts in primitives: who goes where, there and back, and the losses that keep it balanced.
//!
//! 1. **Choice.** k rounds of: the largest score of each token, the first expert that has it, masked for the next round.
//! 2. **Position.** The number of tokens an expert has been given before this one: a running sum along the tokens. With
//!    slots, all first choices come before all second ones, so that a full expert turns second choices away first.
//! 3. **Places.** The transpose of the position: a scatter that writes each token's number (plus one, as 0 is empty) to its
//!    place. A position beyond the last slot is an id outside the axis, which a scatter leaves out: the token is dropped.
//! 4. Dispatch is a gather of tokens by place, combine the scatter back with the places' weights; an empty place holds the
//!    id −1, so it gathers 0 and adds to nothing. Gradients, of the weights too, follow from these ops; choices and
//!    positions are integers and have none.
//!
//! Sources: Lepikhin et al. 2020 (GShard, arXiv:2006.16668), algorithm 1, for slots; Gale et al. 2022 (MegaBlocks,
//! arXiv:2211.15841), §5.2, for padded rows without dropping.

use super::composites::Result;
use super::grouped::Packing;
use super::shape::union_type;
use super::{Axis, BinaryOp, Builder, CompareOp, DType, Name, Op, ReduceOp, Type, UnaryOp, ValueId};

/// Where tokens go.
#[derive(Clone, Debug)]
pub enum Places {
    /// Every expert has these; what it can't take is dropped.
    Slots(Axis),
    /// Rows sorted by expert in tiles of one expert each; long enough for everything.
    Rows {
        /// The packed axis.
        row: Axis,
        /// Rows of a tile.
        tile: u64,
    },
}

/// What a routing is made of.
#[derive(Clone, Debug)]
pub struct RouteParts {
    /// Weights, `[groups.., tokens, expert]`.
    pub gates: ValueId,
    /// The largest of these are chosen; same axes.
    pub select: ValueId,
    /// Token axis.
    pub tokens: Name,
    /// Expert axis.
    pub expert: Name,
    /// Experts per token.
    pub k: u64,
    /// Divide the weights of a token by their sum.
    pub normalise: bool,
    /// Where tokens go.
    pub places: Places,
}

/// A routing in values.
#[derive(Clone, Debug)]
pub struct Routed {
    gates: ValueId,
    tokens: Name,
    expert: Axis,
    k: u64,
    /// Per choice, whether a token makes it: bool `[groups.., tokens, expert]`.
    choices: Vec<ValueId>,
    /// Token at each place, i32; −1 at an empty one. `[groups.., expert, slot]` or `[groups.., row]`.
    token: ValueId,
    /// Weight of each place, 0 at an empty one.
    weight: ValueId,
    /// Expert of each row, and how rows are packed; none with slots.
    owner: Option<(ValueId, Packing)>,
}

impl Builder {
    /// Chooses experts and gives every chosen token a place.
    pub fn route(&mut self, parts: RouteParts) -> Routed {
        let RouteParts { gates, select, tokens, expert, k, normalise, places } = parts;
        let size = self.ty(gates).size_of(&expert).expect("the gates have the expert axis");
        let expert = Axis::new(expert, size);
        let choices = self.top_k(select, &expert, k);
        let chosen = self.any_of(&choices);
        let weights = self.chosen_weights(gates, chosen, &expert, normalise);
        let (token, weight, owner) = match places {
            Places::Slots(slot) => {
                let position = self.positions_by_choice(&choices, &tokens);
                let gone = [tokens.clone()];
                let token = self.tokens_at(position, chosen, &tokens, &gone, &slot);
                let op = Op::Gather { axis: tokens.clone() };
                (token, self.one(op, &[weights, token], None, "weight"), None)
            }
            Places::Rows { row, tile } => {
                let (position, owner) = self.packed_positions(chosen, &tokens, &expert, &row, tile);
                let gone = [tokens.clone(), expert.name.clone()];
                let token = self.tokens_at(position, chosen, &tokens, &gone, &row);
                let op = Op::Gather { axis: tokens.clone() };
                let of_token = self.one(op, &[weights, token], None, "weights");
                let op = Op::Gather { axis: expert.name.clone() };
                let weight = self.one(op, &[of_token, owner], None, "weight");
                (token, weight, Some((owner, Packing { row: row.name, tile })))
            }
        };
        Routed { gates, tokens, expert, k, choices, token, weight, owner }
    }

    /// Masks of the k largest along an axis, the largest first; of equal ones the first.
    fn top_k(&mut self, scores: ValueId, axis: &Axis, k: u64) -> Vec<ValueId> {
        let over = std::slice::from_ref(&axis.name);
        let index = self.index(&axis.name, axis.size);
        let none = self.constant(DType::I32, axis.size as f64);
        let lowest = self.constant(self.ty(scores).dtype, f64::NEG_INFINITY);
        let mut left = scores;
        let mut masks = Vec::new();
        for _ in 0..k {
            let largest = self.reduce(ReduceOp::Max, left, over);
            let reaches = self.compare(CompareOp::Eq, left, largest);
            let places = self.select(reaches, index, none);
            let first = self.reduce(ReduceOp::Min, places, over);
            let ty = self.ty(scores).with_dtype(DType::Bool);
            let mask = self.one(Op::Compare(CompareOp::Eq), &[index, first], Some(ty), "choice");
            left = self.select(mask, lowest, left);
            masks.push(mask);
        }
        masks
    }

    fn any_of(&mut self, masks: &[ValueId]) -> ValueId {
        let mut any = masks[0];
        for mask in &masks[1..] {
            any = self.binary(BinaryOp::Or, any, *mask);
        }
        any
    }

    /// The gates of chosen experts, 0 elsewhere.
    fn chosen_weights(&mut self, gates: ValueId, chosen: ValueId, expert: &Axis, normalise: bool) -> ValueId {
        let zero = self.constant(self.ty(gates).dtype, 0.0);
        let weights = self.select(chosen, gates, zero);
        if !normalise {
            return weights;
        }
        let sum = self.reduce(ReduceOp::Sum, weights, std::slice::from_ref(&expert.name));
        let one = self.constant(self.ty(gates).dtype, 1.0);
        let empty = self.compare(CompareOp::Eq, sum, zero);
        let sum = self.select(empty, one, sum);
        self.div(weights, sum)
    }

    /// How many tokens come before this one in the queue of each expert it chose, i32; first choices before second ones.
    fn positions_by_choice(&mut self, choices: &[ValueId], tokens: &Name) -> ValueId {
        let zero = self.constant(DType::I32, 0.0);
        let (mut position, mut before): (Option<ValueId>, Option<ValueId>) = (None, None);
        for (i, choice) in choices.iter().enumerate() {
            let one = self.ones(*choice);
            let mut queue = self.cumsum(one, tokens, true, false);
            if let Some(before) = before {
                queue = self.add(queue, before);
            }
            position = Some(match position {
                None => self.select(*choice, queue, zero),
                Some(earlier) => self.select(*choice, queue, earlier),
            });
            if i + 1 < choices.len() {
                let count = self.reduce(ReduceOp::Sum, one, std::slice::from_ref(tokens));
                before = Some(match before {
                    None => count,
                    Some(before) => self.add(before, count),
                });
            }
        }
        position.expect("a token has a choice")
    }

    /// The row of each chosen token, and the expert of each row (the number of experts behind the last).
    fn packed_positions(
        &mut self,
        chosen: ValueId,
        tokens: &Name,
        expert: &Axis,
        row: &Axis,
        tile: u64,
    ) -> (ValueId, ValueId) {
        let one = self.ones(chosen);
        let count = self.reduce(ReduceOp::Sum, one, std::slice::from_ref(tokens));
        let less = self.constant(DType::I32, tile as f64 - 1.0);
        let tile = self.constant(DType::I32, tile as f64);
        let padded = self.add(count, less);
        let padded = self.div(padded, tile);
        let padded = self.mul(padded, tile);
        let end = self.cumsum(padded, &expert.name, false, false);
        let start = self.sub(end, padded);
        let queue = self.cumsum(one, tokens, true, false);
        let position = self.add(queue, start);
        let index = self.index(&row.name, row.size);
        let ty = union_type(DType::Bool, &[self.ty(end), self.ty(index)]);
        let behind = self.one(Op::Compare(CompareOp::Le), &[end, index], Some(ty), "behind");
        let behind = self.ones(behind);
        let owner = self.reduce(ReduceOp::Sum, behind, std::slice::from_ref(&expert.name));
        self.set_name(owner, "owner");
        (position, owner)
    }

    /// 1 where a mask holds, else 0.
    fn ones(&mut self, mask: ValueId) -> ValueId {
        let [one, zero] = [1.0, 0.0].map(|c| self.constant(DType::I32, c));
        self.select(mask, one, zero)
    }

    /// The token at each place, −1 at an empty one, given where each chosen token goes. The places are `place` beside the
    /// axes of the mask but those of `gone`: each expert has slots of its own, rows are those of all experts.
    fn tokens_at(
        &mut self,
        position: ValueId,
        chosen: ValueId,
        tokens: &Name,
        gone: &[Name],
        place: &Axis,
    ) -> ValueId {
        let none = self.constant(DType::I32, -1.0);
        let ids = self.select(chosen, position, none);
        let ty = self.ty(ids).clone();
        let index = self.index(tokens, ty.size_of(tokens).expect("the masks have the token axis"));
        let one = self.constant(DType::I32, 1.0);
        let number = self.add(index, one);
        let number = self.broadcast(number, &ty);
        let mut places = ty.without(gone);
        places.axes.push(place.clone());
        let op = Op::ScatterAdd { axis: place.name.clone() };
        let token = self.one(op, &[number, ids], Some(places), "token");
        let token = self.sub(token, one);
        self.set_name(token, "token");
        token
    }

    /// To every place its token's slice of x, 0 to an empty one; `ty` orders the axes.
    ///
    /// ```text
    /// x [groups.., tokens, ..] -> h [groups.., expert, slot, ..]  or  [groups.., row, ..]
    /// ```
    pub fn dispatch(&mut self, x: ValueId, r: &Routed, ty: &Type) -> ValueId {
        let op = Op::Gather { axis: r.tokens.clone() };
        self.one(op, &[x, r.token], Some(ty.clone()), "dispatched")
    }

    /// To every token the sum over its places of h times the place's weight; `ty` orders the axes.
    ///
    /// ```text
    /// h [groups.., expert, slot, ..]  or  [groups.., row, ..] -> y [groups.., tokens, ..]
    /// ```
    pub fn combine(&mut self, h: ValueId, r: &Routed, ty: &Type) -> ValueId {
        let weighted = self.mul(h, r.weight);
        let op = Op::ScatterAdd { axis: r.tokens.clone() };
        self.one(op, &[weighted, r.token], Some(ty.clone()), "combined")
    }

    /// Every row times the matrix of its expert, see [`Builder::grouped_dot`].
    ///
    /// # Errors
    /// The operands don't fit, or the routing has slots, whose expert axis an ordinary product shares.
    pub fn dot_by_owner(&mut self, x: ValueId, w: ValueId, r: &Routed, over: &[Name]) -> Result<ValueId> {
        match &r.owner {
            Some((owner, packing)) => self.grouped_dot(x, w, *owner, &r.expert.name, over, packing),
            None => super::composites::fail("a routing with slots has no packed rows".into()),
        }
    }

    /// `n · Σ over the n experts of f·P`: f the share of choices an expert gets, P the mean of its gates, both over the
    /// tokens of `over`. 1 if both are even. Only P has a gradient.
    ///
    /// `first` counts the first choice of each token alone, as GShard (arXiv:2006.16668, §2.2) and Switch Transformer
    /// (arXiv:2101.03961, §2.2, eq. 4-6) do; otherwise all k count.
    pub fn load_balance(&mut self, r: &Routed, over: &[Name], first: bool) -> ValueId {
        let counted = if first { r.choices[0] } else { self.any_of(&r.choices) };
        let dtype = self.ty(r.gates).dtype;
        let [one, zero] = [1.0, 0.0].map(|c| self.constant(dtype, c));
        let counted = self.select(counted, one, zero);
        let share = self.counted_mean(counted, over);
        let gate = self.counted_mean(r.gates, over);
        let product = self.mul(share, gate);
        let sum = self.reduce(ReduceOp::Sum, product, std::slice::from_ref(&r.expert.name));
        let choices = if first { 1 } else { r.k };
        self.scale(sum, r.expert.size as f64 / choices as f64)
    }

    /// `(log Σ exp x)²` along an axis. Source: Zoph et al. 2022 (ST-MoE, arXiv:2202.08906), §3.3, eq. 5.
    pub fn z_loss(&mut self, x: ValueId, axis: &Name) -> ValueId {
        let (_, sum, max) = self.shifted_exp(x, axis);
        let log = self.unary(UnaryOp::Log, sum);
        let lse = self.add(max, log);
        self.mul(lse, lse)
    }
}
