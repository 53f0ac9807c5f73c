//! The table of options, and the usage texts made from it.

/// What the binary is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Train, from the newest checkpoint or from the start.
    Train,
    /// Measure the loss on held-out data.
    Eval,
    /// Continue a text.
    Generate,
    /// Write the trained weights for other programs.
    Export,
    /// Check the checkpoints of a run.
    Verify,
    /// Describe the binary.
    Info,
    /// Speak the benchmark protocol on standard input and output.
    Bench,
    /// Print the usage text.
    Help,
}

/// Form of an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// No value.
    Flag,
    /// Any text; the word names it in the usage text.
    Text(&'static str),
    /// A whole number, `500k` and `2M` included.
    Count(&'static str),
    /// A number.
    Number(&'static str),
}

/// One option of the command line.
pub struct Opt {
    /// Name without the dashes.
    pub name: &'static str,
    /// What value it takes.
    pub form: Form,
    /// The commands it belongs to.
    pub commands: &'static [Command],
    /// What it does, in one line.
    pub help: &'static str,
}

const fn opt(name: &'static str, form: Form, commands: &'static [Command], help: &'static str) -> Opt {
    Opt { name, form, commands, help }
}

use Command::{Bench, Eval, Export, Generate, Help, Info, Train, Verify};
use Form::{Count, Flag, Number, Text};

/// Commands that run the program.
const RUNS: &[Command] = &[Train, Eval, Generate, Bench];

/// All options.
#[rustfmt::skip]
pub const OPTIONS: &[Opt] = &[
    opt("data", Text("SOURCE"), &[Train, Eval, Bench], "data: PATH or glob, bytes:PATH, tokens:PATH, records:PATH, synthetic"),
    opt("eval-data", Text("SOURCE"), &[Train], "held-out data, same forms"),
    opt("steps", Count("N"), &[Train], "stop after step N; the schedule's horizon stays"),
    opt("seed", Count("N"), &[Train, Generate, Bench], "seed of initialisation and sampling"),
    opt("threads", Count("N"), &[Train, Eval, Generate, Export, Verify, Bench], "threads of all ranks here together (default: all this process may use, or MLC_THREADS)"),
    opt("ranks", Count("N"), RUNS, "run N ranks in this process, which share its threads (default 1)"),
    opt("watchdog", Number("SECONDS"), RUNS, "longest wait for another rank within a step (default 30)"),
    opt("pin", Flag, RUNS, "keep each thread on one CPU"),
    opt("resume", Text("auto|never|STEP"), &[Train], "where to continue (default auto: the newest valid checkpoint)"),
    opt("checkpoint", Text("auto|STEP"), &[Eval, Generate, Export], "which checkpoint to load (default auto: the newest valid one)"),
    opt("init", Text("FILE"), RUNS, "weights to start from: .safetensors, or the index .json of several"),
    opt("out", Text("DIR"), &[Train, Eval, Generate, Export, Verify], "folder of the run: checkpoints and metrics.jsonl (default .)"),
    opt("metrics", Text("FILE"), &[Train], "metrics file (default OUT/metrics.jsonl)"),
    opt("checkpoint-every", Text("N|end|never"), &[Train], "save every N steps, only at the end, or never"),
    opt("log-every", Count("N"), &[Train], "print a line every N steps"),
    opt("eval-every", Count("N"), &[Train], "evaluate every N steps; 0 = never"),
    opt("batches", Count("N"), &[Eval], "batches to evaluate (default: all of the data once)"),
    opt("profile", Flag, &[Train], "time every op and print a table at the end"),
    opt("trace", Text("FILE[:STEPS]"), &[Train], "record what runs when, of every rank, from the second step on (default 1 step); ui.perfetto.dev shows it"),
    opt("set", Text("KEY=VALUE"), &[Train, Eval, Generate, Export, Verify, Bench, Info], "set a run-time key of the spec; may be repeated"),
    opt("to", Text("FILE"), &[Export], "the safetensors file to write"),
    opt("names", Text("TABLE"), &[Export], "names to write by: `logical`, or a table of the spec (default: its first)"),
    opt("prompt", Text("TEXT"), &[Generate], "text to continue (default: a line break)"),
    opt("tokens", Count("N"), &[Generate], "tokens to generate (default 256)"),
    opt("temperature", Number("T"), &[Generate], "0 takes the likeliest token (default 0.8)"),
    opt("top-k", Count("K"), &[Generate], "draw among the K likeliest tokens; 0 = all (default 0)"),
    opt("ops", Flag, &[Info], "print the op table"),
    opt("spec", Flag, &[Info], "print the expanded spec"),
    opt("kernels", Flag, &[Bench], "time every op instead of speaking the protocol"),
    opt("help", Flag, &[Train, Eval, Generate, Export, Verify, Info, Bench, Help], "print this"),
];

/// The usage text of a command, or of all.
pub fn usage(command: Command) -> String {
    let head = match command {
        Train => "usage: BINARY train [options]\n\nTrains the model of this binary.",
        Eval => "usage: BINARY eval [options]\n\nMeasures the loss of a checkpoint on held-out data.",
        Generate => "usage: BINARY generate [options]\n\nContinues a text, one byte a token.",
        Export => {
            "usage: BINARY export --to FILE [options]\n\nWrites the parameters of a checkpoint for other programs."
        }
        Verify => {
            "usage: BINARY verify [options]\n\nChecks every checkpoint of a run against its hashes and this program."
        }
        Info => "usage: BINARY info [options]\n\nDescribes this binary.",
        Bench => {
            "usage: BINARY bench [options]\n\nFor every line K on standard input runs K steps and prints a line of JSON."
        }
        Help => return general_usage(),
    };
    let mut text = format!("{head}\n\noptions:\n");
    for opt in OPTIONS.iter().filter(|o| o.commands.contains(&command)) {
        let left = format!("--{} {}", opt.name, shown(opt.form));
        text.push_str(&format!("  {left:<28} {}\n", opt.help));
    }
    text.trim_end().to_owned()
}

fn general_usage() -> String {
    "usage: BINARY COMMAND [options]\n\n\
     commands:\n  \
       train      train the model; continues from the newest checkpoint\n  \
       eval       measure the loss on held-out data\n  \
       generate   continue a text\n  \
       export     write the trained weights for other programs\n  \
       verify     check the checkpoints of a run\n  \
       info       describe this binary: model, parameters, memory, keys\n\n\
     BINARY COMMAND --help lists the options of a command.\n\n\
     exit codes: 0 done, 1 data, checkpoint or file missing or wrong, 2 wrong command line, 3 the loss is not finite,\n            \
     4 this machine lacks CPU features or memory, 5 too many steps were skipped,\n            \
     6 the ranks do not fit the program, 7 another rank has ended or does not come, 75 stopped by SIGTERM or SIGINT after saving"
        .to_owned()
}

/// The word that stands for the value in a usage text.
pub fn shown(form: Form) -> &'static str {
    match form {
        Form::Flag => "",
        Form::Text(word) | Form::Count(word) | Form::Number(word) => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_in_the_usage_text_of_its_commands() {
        for opt in OPTIONS {
            for &command in opt.commands.iter().filter(|c| **c != Help) {
                assert!(usage(command).contains(&format!("--{}", opt.name)));
            }
        }
    }
}
