//! The values a key or an option may have, beyond being a number.

/// Which numbers make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// 0 or more.
    NotNegative,
    /// Above 0.
    Positive,
    /// A step: whole, 0 or more.
    Step,
    /// 1 or more.
    AtLeastOne,
}

/// Keys and options by name; a `*` stands for one part of a key, such as the piece of a schedule. What is not listed may be
/// any finite number.
const RANGES: &[(&str, Range)] = &[
    ("train.optimizer.lr", Range::NotNegative),
    ("train.optimizer.decay", Range::NotNegative),
    ("train.optimizer.otherwise.decay", Range::NotNegative),
    ("train.optimizer.clip", Range::Positive),
    ("train.skip.norm", Range::Positive),
    ("train.schedule.*.to", Range::NotNegative),
    ("train.schedule.*.steps", Range::Step),
    ("train.steps", Range::Step),
    ("--batches", Range::AtLeastOne),
    ("--watchdog", Range::Positive),
    ("--temperature", Range::NotNegative),
];

/// What `name` takes, in words, if `value` is outside.
pub fn outside(name: &str, value: f64) -> Option<&'static str> {
    let (_, range) = RANGES.iter().find(|(pattern, _)| matches(pattern, name))?;
    let (inside, words) = match range {
        Range::NotNegative => (value >= 0.0, "a number that is 0 or more"),
        Range::Positive => (value > 0.0, "a number above 0"),
        Range::Step => (value >= 0.0 && value.fract() == 0.0, "a whole number that is 0 or more"),
        Range::AtLeastOne => (value >= 1.0, "a number that is 1 or more"),
    };
    (!inside).then_some(words)
}

fn matches(pattern: &str, name: &str) -> bool {
    let (mut parts, mut names) = (pattern.split('.'), name.split('.'));
    loop {
        match (parts.next(), names.next()) {
            (None, None) => return true,
            (Some(part), Some(name)) if part == "*" || part == name => {}
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_by_name() {
        let cases = [
            ("train.optimizer.lr", -1.0, true),
            ("train.optimizer.lr", 0.0, false),
            ("train.optimizer.decay", -0.1, true),
            ("train.optimizer.clip", 0.0, true),
            ("train.optimizer.clip", 0.5, false),
            ("train.schedule.cosine2.to", -1e-9, true),
            ("train.schedule.warmup.steps", 2.5, true),
            ("train.schedule.warmup.steps", 2.0, false),
            ("--batches", 0.0, true),
            ("--temperature", f64::NAN, true),
            ("train.schedule.to", -1.0, false),
            ("train.schedule.warmup.to.x", -1.0, false),
            ("anything.else", -1.0, false),
        ];
        for (name, value, refused) in cases {
            assert_eq!(outside(name, value).is_some(), refused, "{name} {value}");
        }
    }
}
