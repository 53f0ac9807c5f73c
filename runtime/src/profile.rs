//! The table of times per op.

use crate::program::Program;
use crate::rank::OpTime;

/// One line per op, slowest first, with its share of the time and its rates.
pub fn table(program: &Program, times: &[OpTime]) -> String {
    let total: f64 = times.iter().map(|t| t.total.as_secs_f64()).sum();
    let mut order: Vec<usize> = (0..times.len()).filter(|&i| times[i].launches > 0).collect();
    order.sort_by(|&a, &b| times[b].total.cmp(&times[a].total).then(a.cmp(&b)));
    let mut text = format!(
        "{:>9} {:>6} {:>9} {:>10} {:>10} {:>9} {:>8}  op",
        "total ms", "%", "launches", "mean us", "least us", "GFLOP/s", "GB/s"
    );
    for i in order {
        let (time, op) = (&times[i], &program.info.ops[i]);
        let seconds = time.total.as_secs_f64();
        let mean = seconds / time.launches as f64;
        text.push_str(&format!(
            "\n{:>9.2} {:>6.2} {:>9} {:>10.1} {:>10.1} {:>9.1} {:>8.1}  {} {} {}",
            seconds * 1e3,
            100.0 * seconds / total.max(1e-12),
            time.launches,
            mean * 1e6,
            time.least.as_secs_f64() * 1e6,
            op.flops as f64 / mean / 1e9,
            op.bytes as f64 / mean / 1e9,
            op.path,
            op.kernel,
            op.line
        ));
    }
    text
}
