//! Which values lie in the host's memory.

use super::{Graph, Op, RegionId, Space, ValueId};
use std::collections::BTreeSet;

impl Graph {
    /// Values in the host's memory: what `to_host` gives, stacks of it, and slices of those.
    pub fn host_values(&self) -> BTreeSet<ValueId> {
        let mut found = BTreeSet::new();
        self.collect_host_values(self.body, &mut found);
        found
    }

    fn collect_host_values(&self, region: RegionId, found: &mut BTreeSet<ValueId>) {
        for op in &self.region(region).ops {
            let node = self.op(*op);
            if let Op::Transfer { to: Space::Host } = node.op {
                found.extend(&node.results);
            }
            let Some(l) = node.op.as_loop() else { continue };
            let body = self.region(l.body);
            let args = body.args[1..].iter().zip(&node.operands);
            let inside: Vec<ValueId> = args.filter(|(_, v)| found.contains(v)).map(|(arg, _)| *arg).collect();
            found.extend(inside);
            self.collect_host_values(l.body, found);
            let results = body.results.iter().zip(&node.results);
            let outside: Vec<ValueId> = results.filter(|(v, _)| found.contains(v)).map(|(_, r)| *r).collect();
            found.extend(outside);
        }
    }
}
