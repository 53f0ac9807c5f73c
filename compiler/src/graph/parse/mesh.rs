//! Ops between ranks.

use super::{Parser, Result};
use crate::graph::{Collective, CollectiveKind, CollectivePart, DType, MeshOp, Name, ReduceOp};
use std::collections::BTreeMap;

/// The kind a mnemonic names.
pub(super) fn collective_kind(mnemonic: &str) -> Option<CollectiveKind> {
    match mnemonic {
        "all_gather" => return Some(CollectiveKind::AllGather),
        "all_to_all" => return Some(CollectiveKind::AllToAll),
        _ => {}
    }
    [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min].into_iter().find_map(|op| {
        if mnemonic.strip_prefix("reduce_scatter_") == Some(op.name()) {
            Some(CollectiveKind::ReduceScatter(op))
        } else if mnemonic.strip_prefix("all_reduce_") == Some(op.name()) {
            Some(CollectiveKind::AllReduce(op))
        } else {
            None
        }
    })
}

impl Parser {
    /// `to seq -> tensor, batch -> data fsdp, d -> none`
    pub(super) fn constrain(&mut self) -> Result<MeshOp> {
        self.expect_word("to")?;
        let mut split = BTreeMap::new();
        loop {
            let axis = self.name("an axis")?;
            self.expect("->")?;
            let over = if self.accept_word("none") { Vec::new() } else { self.mesh_names()? };
            split.insert(axis, over);
            if !self.accept(",") {
                return Ok(MeshOp::Constrain { split });
            }
        }
    }

    /// `wire bf16 may replicate because "…"`, or parts of it.
    pub(super) fn reshard(&mut self) -> Result<MeshOp> {
        let wire = self.wire()?;
        let may_replicate = self.accept_word("may");
        if may_replicate {
            self.expect_word("replicate")?;
        }
        Ok(MeshOp::Reshard { cause: self.cause()?, wire, may_replicate })
    }

    /// `along d over fsdp`
    pub(super) fn local_part(&mut self) -> Result<MeshOp> {
        let axis = self.along()?;
        self.expect_word("over")?;
        Ok(MeshOp::LocalPart { axis, over: self.mesh_names()? })
    }

    /// `over data fsdp split e, none join b, none wire bf16 because "…"`: an axis per operand where the kind has any.
    pub(super) fn collective(&mut self, mnemonic: &str, operands: usize) -> Result<MeshOp> {
        let Some(kind) = collective_kind(mnemonic) else {
            return self.error(format!("`{mnemonic}` is not a collective"));
        };
        self.expect_word("over")?;
        let over = self.mesh_names()?;
        let mut parts = vec![CollectivePart::default(); operands];
        if self.accept_word("split") {
            for (part, axis) in parts.iter_mut().zip(self.names("an axis")?) {
                part.split = Some(axis);
            }
        }
        if self.accept_word("join") {
            for (part, axis) in parts.iter_mut().zip(self.names("an axis")?) {
                part.join = Some(axis);
            }
        }
        let wire = self.wire()?;
        Ok(MeshOp::Collective(Collective { kind, over, parts, wire, cause: self.cause()? }))
    }

    /// `wire bf16`, or nothing.
    pub(super) fn wire(&mut self) -> Result<Option<DType>> {
        if self.accept_word("wire") { Ok(Some(self.dtype()?)) } else { Ok(None) }
    }

    /// `because "…"`, or nothing.
    pub(super) fn cause(&mut self) -> Result<Name> {
        if self.accept_word("because") { self.quoted("the cause") } else { Ok("".into()) }
    }

    /// `data fsdp`, on one line.
    fn mesh_names(&mut self) -> Result<Vec<Name>> {
        let mut names = vec![self.name("a mesh axis")?];
        while let super::Token::Word(word) = self.peek()
            && !["split", "join", "wire", "because", "over", "to"].contains(&word.as_str())
        {
            names.push(self.name("a mesh axis")?);
        }
        Ok(names)
    }
}
