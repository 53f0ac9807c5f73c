//! Lines people read.

use std::time::Duration;

use super::StepRecord;

/// The step line: step/steps, loss, gradient norm and learning rate if the program gives them, speed, memory, time left.
/// `per_step` is the mean time of the steps since the last line.
pub fn step_line(record: &StepRecord, per_step: Duration) -> String {
    let width = record.steps.to_string().len();
    let mut text = format!("step {:>width$}/{}  loss {:.4}", record.step, record.steps, record.outcome.loss);
    for (name, value) in &record.outcome.outputs {
        match name.as_str() {
            "loss" | "loss_sum" | "loss_weight" | "nonfinite" => {}
            "skipped" if *value == 0.0 => {}
            "skipped" => text.push_str("  skipped"),
            "grad_norm" => text.push_str(&format!("  grad {value:.3}")),
            "lr" => text.push_str(&format!("  lr {value:.2e}")),
            other => text.push_str(&format!("  {other} {value:.4}")),
        }
    }
    let seconds = per_step.as_secs_f64().max(1e-9);
    text.push_str(&format!("  {} tok/s", si(record.tokens as f64 / seconds)));
    if record.flops > 0 {
        text.push_str(&format!("  {:.1} GFLOP/s", record.flops as f64 / seconds / 1e9));
    }
    text.push_str(&format!("  mem {}", bytes(record.memory_bytes)));
    let left = record.steps.saturating_sub(record.step);
    if left > 0 {
        text.push_str(&format!("  eta {}", duration(seconds * left as f64)));
    }
    text
}

/// The redrawn line: a bar and the essentials.
pub fn progress_line(record: &StepRecord, per_step: Duration) -> String {
    const CELLS: u64 = 24;
    let full = (record.step * CELLS / record.steps.max(1)).min(CELLS) as usize;
    let seconds = per_step.as_secs_f64();
    format!(
        "[{}{}] {}/{}  loss {:.4}  {} tok/s  eta {}",
        "=".repeat(full),
        " ".repeat(CELLS as usize - full),
        record.step,
        record.steps,
        record.outcome.loss,
        si(record.tokens as f64 / seconds.max(1e-9)),
        duration(seconds * record.steps.saturating_sub(record.step) as f64)
    )
}

/// A count with a decimal unit: `950`, `12.3k`, `4.56M`.
pub fn si(value: f64) -> String {
    let (scaled, unit) = match value {
        v if v >= 1e12 => (v / 1e12, "T"),
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => return format!("{v:.0}"),
    };
    let digits = if scaled < 10.0 { 2 } else { usize::from(scaled < 100.0) };
    format!("{scaled:.digits$}{unit}")
}

/// A size with a binary unit: `512 B`, `1.5 KiB`, `412 MiB`.
pub fn bytes(value: u64) -> String {
    let mut scaled = value as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    let digits = usize::from(unit != "B" && scaled < 10.0);
    format!("{scaled:.digits$} {unit}")
}

/// A time in its two largest units: `8s`, `3m12s`, `5h02m`, `2d04h`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round().clamp(0.0, 1e15) as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    if days > 0 {
        format!("{days}d{:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", whole % 60)
    } else {
        format!("{whole}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Outcome;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 999.0, 1234.0, 12_345.0, 4.56e6, 7.0e13].map(si),
            ["0", "999", "1.23k", "12.3k", "4.56M", "70.0T"]
        );
        assert_eq!([0, 1023, 1536, 432_013_312].map(bytes), ["0 B", "1023 B", "1.5 KiB", "412 MiB"]);
        assert_eq!([0.4, 192.0, 18_120.0, 187_200.0].map(duration), ["0s", "3m12s", "5h02m", "2d04h"]);
    }

    #[test]
    fn step_line_shows_what_people_expect() {
        let outputs = [("loss", 2.34567), ("grad_norm", 1.5), ("lr", 3e-4), ("balance", 0.01)];
        let outcome = Outcome {
            loss: 2.34567,
            loss_bits: String::new(),
            outputs: outputs.map(|(n, v)| (n.to_owned(), v)).to_vec(),
        };
        let record = StepRecord {
            step: 20,
            steps: 1000,
            outcome: &outcome,
            time: Duration::from_millis(500),
            tokens: 2048,
            flops: 50_000_000_000,
            memory_bytes: 412 << 20,
        };
        assert_eq!(
            step_line(&record, record.time),
            "step   20/1000  loss 2.3457  grad 1.500  lr 3.00e-4  balance 0.0100  4.10k tok/s  100.0 GFLOP/s  \
             mem 412 MiB  eta 8m10s"
        );
        assert!(
            progress_line(&record, record.time)
                .starts_with("[                        ] 20/1000  loss 2.3457")
        );
    }
}
