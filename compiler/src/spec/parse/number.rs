//! Numbers with suffixes.

use crate::spec::ast::{Number, Unit};
use crate::spec::source::Span;

/// Multiplier and unit of a number's suffix.
fn suffix_meaning(suffix: &str) -> Option<(f64, Unit)> {
    const KI: f64 = 1024.0;
    Some(match suffix {
        "" => (1.0, Unit::One),
        "k" => (1e3, Unit::One),
        "M" => (1e6, Unit::One),
        "G" => (1e9, Unit::One),
        "T" => (1e12, Unit::One),
        "Ki" => (KI, Unit::One),
        "Mi" => (KI * KI, Unit::One),
        "Gi" => (KI * KI * KI, Unit::One),
        "Ti" => (KI * KI * KI * KI, Unit::One),
        "B" => (1.0, Unit::Bytes),
        "KB" => (1e3, Unit::Bytes),
        "MB" => (1e6, Unit::Bytes),
        "GB" => (1e9, Unit::Bytes),
        "TB" => (1e12, Unit::Bytes),
        "KiB" => (KI, Unit::Bytes),
        "MiB" => (KI * KI, Unit::Bytes),
        "GiB" => (KI * KI * KI, Unit::Bytes),
        "TiB" => (KI * KI * KI * KI, Unit::Bytes),
        "ms" => (1e-3, Unit::Seconds),
        "s" => (1.0, Unit::Seconds),
        "min" => (60.0, Unit::Seconds),
        "h" => (3600.0, Unit::Seconds),
        "d" => (86400.0, Unit::Seconds),
        _ => return None,
    })
}

/// Where the suffix of a number begins. An `e` belongs to the number if digits follow it.
fn suffix_start(text: &str) -> usize {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    for (at, c) in text.char_indices().filter(|(_, c)| c.is_ascii_alphabetic()) {
        let signed = matches!(bytes.get(at + 1), Some(b'+' | b'-')) && is_digit(at + 2);
        if !matches!(c, 'e' | 'E') || !(is_digit(at + 1) || signed) {
            return at;
        }
    }
    text.len()
}

/// Reads a number as the grammar lets it through.
pub(super) fn read_number(text: &str, negative: bool, span: Span) -> Result<Number, &'static str> {
    let (digits, suffix) = text.split_at(suffix_start(text));
    let digits = digits.replace('_', "");
    let unknown = "unknown suffix: expected k, M, G, T, Ki, Mi, Gi, Ti, a unit of bytes (B … TiB) or of time (ms, s, min, h, d)";
    let (multiplier, unit) = suffix_meaning(suffix).ok_or(unknown)?;
    let base: f64 = digits.parse().map_err(|_| "not a number")?;
    let value = base * multiplier;
    if !value.is_finite() {
        return Err("too large for a number");
    }
    // Whole numbers keep all 64 bits: a seed may need them.
    let exact = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(multiplier as u64));
    let whole = multiplier >= 1.0 && value.fract() == 0.0 && value < 9.0e15;
    let integer = match (negative, exact) {
        (true, _) if value != 0.0 => None,
        (_, Some(exact)) if multiplier >= 1.0 => Some(exact),
        _ => whole.then_some(value as u64),
    };
    let sign = if negative { "-" } else { "" };
    let value = if negative { -value } else { value };
    Ok(Number { value, integer, unit, text: format!("{sign}{text}"), span })
}
