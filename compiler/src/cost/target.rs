//! Figures of machines, from files.

use crate::graph::DType;
use serde::{Deserialize, Serialize};

/// A kind of machine: a device, and how many of them are linked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name, `h100`.
    pub name: String,
    /// One line for people.
    pub what: String,
    /// What one rank runs on.
    pub device: Device,
    /// The link between ranks of one node.
    pub node: Node,
    /// The link between nodes: of mesh axes `over nodes`.
    pub network: Link,
    /// Where the figures are from.
    pub sources: Vec<String>,
}

/// What one rank runs on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Bytes of memory.
    pub memory: f64,
    /// Bytes per second between memory and arithmetic.
    pub bandwidth: f64,
    /// Floating-point operations per second.
    pub peak: Peak,
    /// The part of the peak that large products reach, 0 to 1.
    pub efficiency: f64,
    /// Seconds from one kernel to the next.
    pub launch: f64,
}

/// Floating-point operations per second by element type. A type without a figure runs as the next wider one that has one, or
/// if there is none, as the next shorter.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peak {
    /// Of f64.
    pub f64: Option<f64>,
    /// Of f32.
    pub f32: Option<f64>,
    /// Of bf16 with f32 sums.
    pub bf16: Option<f64>,
}

/// A link between ranks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Seconds per hop, however short the message.
    pub alpha: f64,
    /// Bytes per second that one rank sends while it receives as many: 1/β.
    pub bandwidth: f64,
}

/// The link within a node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The most ranks a node has.
    pub ranks: u64,
    /// Seconds per hop, however short the message.
    pub alpha: f64,
    /// Bytes per second that one rank sends while it receives as many: 1/β.
    pub bandwidth: f64,
}

impl Device {
    /// Floating-point operations per second that large products of elements of this type reach.
    pub fn rate(&self, dtype: DType) -> f64 {
        self.peak.of(dtype) * self.efficiency
    }
}

impl Peak {
    /// The greatest figure.
    pub fn most(&self) -> f64 {
        [self.f64, self.f32, self.bf16].into_iter().flatten().fold(0.0, f64::max)
    }

    /// Of an element type; integers run as f32.
    pub fn of(&self, dtype: DType) -> f64 {
        let by_width = [self.f64, self.f32, self.bf16];
        let at = match dtype {
            DType::F64 => 0,
            DType::F32 | DType::I32 | DType::I64 | DType::Bool => 1,
            DType::Bf16 => 2,
        };
        let wider = by_width[..=at].iter().rev().flatten().next();
        let found = wider.or_else(|| by_width[at..].iter().flatten().next());
        *found.expect("a target has a peak")
    }
}

impl Default for Target {
    /// The CPU's: what is built for and planned for unless a spec or a command says otherwise.
    fn default() -> Target {
        Target::named("cpu").expect("the targets that come with the compiler parse")
    }
}

impl Target {
    /// Reads a file's text.
    ///
    /// # Errors
    /// Line and column of what is no target, or the figure that makes no sense.
    pub fn parse(text: &str) -> Result<Target, String> {
        let target: Target = serde_json::from_str(text).map_err(|e| format!("no target: {e}"))?;
        let (device, peak) = (&target.device, &target.device.peak);
        let figures = [
            ("device.memory", Some(device.memory), false),
            ("device.bandwidth", Some(device.bandwidth), false),
            ("device.peak.f64", peak.f64, false),
            ("device.peak.f32", peak.f32, false),
            ("device.peak.bf16", peak.bf16, false),
            ("device.efficiency", Some(device.efficiency), false),
            ("device.launch", Some(device.launch), true),
            ("node.ranks", Some(target.node.ranks as f64), false),
            ("node.alpha", Some(target.node.alpha), true),
            ("node.bandwidth", Some(target.node.bandwidth), false),
            ("network.alpha", Some(target.network.alpha), true),
            ("network.bandwidth", Some(target.network.bandwidth), false),
        ];
        for (name, figure, zero) in figures {
            let Some(figure) = figure else { continue };
            if !figure.is_finite() || figure < 0.0 || (figure == 0.0 && !zero) {
                let least = if zero { "0 or more" } else { "more than 0" };
                return Err(format!("target {}: {name} is {figure}, not {least}", target.name));
            }
            // Latencies of minutes are figures in another unit.
            if zero && figure > 60.0 {
                return Err(format!("target {}: {name} is {figure} seconds, not 60 at most", target.name));
            }
        }
        if device.efficiency > 1.0 {
            let found = device.efficiency;
            return Err(format!("target {}: device.efficiency is {found}, more than 1", target.name));
        }
        // Links are told apart by name, in plans and timelines, and from the kernels of a step.
        let (node, network) = (&target.node.name, &target.network.name);
        if node == network || [node, network].iter().any(|name| ["", "compute"].contains(&name.as_str())) {
            let names = format!("`{node}` and `{network}`");
            return Err(format!(
                "target {}: the links {names} need two names, other than `compute`",
                target.name
            ));
        }
        if [peak.f64, peak.f32, peak.bf16].iter().all(Option::is_none) {
            return Err(format!("target {}: device.peak has no figure", target.name));
        }
        Ok(target)
    }

    /// A target that comes with the compiler.
    ///
    /// # Errors
    /// Lists the names there are.
    pub fn named(name: &str) -> Result<Target, String> {
        let names: Vec<&str> = targets().iter().map(|(name, _)| *name).collect();
        match targets().iter().find(|(n, _)| *n == name) {
            Some((_, text)) => Target::parse(text),
            None => Err(format!("there is no target {name}; there are {}", names.join(", "))),
        }
    }
}

/// Names and texts of the targets that come with the compiler.
pub fn targets() -> &'static [(&'static str, &'static str)] {
    &[
        ("cpu", include_str!("../../../specs/targets/cpu.json")),
        ("h100", include_str!("../../../specs/targets/h100.json")),
        ("v5p", include_str!("../../../specs/targets/v5p.json")),
    ]
}
