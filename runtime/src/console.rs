//! Where a command writes and reads: the process's standard streams, or buffers in a test.
//!
//! Write errors are dropped on purpose: a training must not die because the terminal that watched it went away.

use std::io::{BufRead, BufReader, IsTerminal, Write};

/// The streams of one run.
pub struct Console {
    /// Results: step lines, tables, generated text.
    out: Box<dyn Write + Send>,
    /// Notes, warnings, the progress line.
    err: Box<dyn Write + Send>,
    /// Standard input; `bench` reads it.
    pub input: Box<dyn BufRead + Send>,
    /// Both `out` and `err` are terminals, hence a progress line may be redrawn.
    interactive: bool,
    /// The progress line is on the screen and must be wiped before anything else is printed.
    drawn: bool,
}

impl Console {
    /// The standard streams of this process.
    pub fn standard() -> Console {
        Console {
            interactive: std::io::stdout().is_terminal() && std::io::stderr().is_terminal(),
            out: Box::new(std::io::stdout()),
            err: Box::new(std::io::stderr()),
            input: Box::new(BufReader::new(std::io::stdin())),
            drawn: false,
        }
    }

    /// Any streams; never interactive.
    pub fn with(
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
        input: Box<dyn BufRead + Send>,
    ) -> Console {
        Console { out, err, input, interactive: false, drawn: false }
    }

    /// Prints nothing and reads nothing: for the ranks that leave talking to the first one.
    pub fn silent() -> Console {
        Console::with(Box::new(std::io::sink()), Box::new(std::io::sink()), Box::new(std::io::empty()))
    }

    /// Whether [`Console::progress`] draws.
    pub fn interactive(&self) -> bool {
        self.interactive
    }

    /// Prints one line of result.
    pub fn line(&mut self, text: &str) {
        self.wipe();
        let _ = self.out.write_all(format!("{text}\n").as_bytes());
        let _ = self.out.flush();
    }

    /// Prints raw bytes of result.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.wipe();
        let _ = self.out.write_all(bytes);
        let _ = self.out.flush();
    }

    /// Prints a note for the person at the keyboard.
    pub fn note(&mut self, text: &str) {
        self.wipe();
        let _ = self.err.write_all(format!("{text}\n").as_bytes());
        let _ = self.err.flush();
    }

    /// Redraws the progress line; does nothing unless interactive.
    pub fn progress(&mut self, text: &str) {
        if self.interactive {
            let _ = self.err.write_all(format!("\r\x1b[K{text}").as_bytes());
            let _ = self.err.flush();
            self.drawn = true;
        }
    }

    /// Removes the progress line.
    pub fn wipe(&mut self) {
        if self.drawn {
            let _ = self.err.write_all(b"\r\x1b[K");
            let _ = self.err.flush();
            self.drawn = false;
        }
    }
}
