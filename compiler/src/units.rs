//! Numbers as people read them.

/// Bytes in a unit that leaves at most four digits.
pub fn bytes(n: u64) -> String {
    let (value, unit) = scaled(n as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

/// Floating-point operations in a unit that leaves at most three digits before the point.
pub fn flops(n: u128) -> String {
    let units = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"];
    let (value, unit) = scaled(n as f64, 1000.0, &units);
    if unit == "FLOP" { format!("{n} FLOP") } else { format!("{value:.1} {unit}") }
}

/// Seconds in a unit that leaves few digits before the point.
pub fn seconds(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.3} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}

fn scaled(mut value: f64, step: f64, units: &[&'static str]) -> (f64, &'static str) {
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    (value, units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_leave_few_digits() {
        assert_eq!([0, 17, 1536, 3 << 30].map(bytes), ["0 B", "17 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!(
            [0, 999, 1000, 1_250_000_000].map(flops),
            ["0 FLOP", "999 FLOP", "1.0 kFLOP", "1.2 GFLOP"]
        );
        assert_eq!([0.0, 2.5e-6, 0.01234, 90.0].map(seconds), ["0.0 µs", "2.5 µs", "12.340 ms", "90.00 s"]);
    }
}
