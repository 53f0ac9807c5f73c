//! Worker processes: LLVM and MLIR abort on their own mistakes, so they run elsewhere.
//!
//! A worker is the same executable started with [`WORKER_ARGUMENT`]; its standard input is a socket that carries requests
//! one way and answers the other, each a length (u32, little-endian) and that many bytes: a request is JSON, an answer a
//! byte (0 object, 1 message) and the rest. Standard output is not used, so nothing printed can get between.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::backend::{Codegen, Compiler, KernelLink};
use crate::program::Program;
use crate::target::Target;

/// The only argument of a worker process. `main` calls [`worker_main`] when it sees it.
pub const WORKER_ARGUMENT: &str = "--codegen-worker";

/// Longest message either side accepts.
const MAX_MESSAGE_BYTES: u32 = 1 << 30;

/// What a worker is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Compile a kernel to an object.
    Kernel {
        /// Text form.
        kir: String,
        /// Name of its function.
        symbol: String,
        /// Name of the target.
        target: String,
        /// Name of the back end.
        codegen: String,
    },
    /// Compile a kernel of the user's own to an object.
    Custom {
        /// Text of [`custom::module`](crate::custom::module).
        mlir: String,
        /// Name of its function.
        symbol: String,
        /// Name of the target.
        target: String,
        /// Name of the back end.
        codegen: String,
    },
    /// Compile a kernel of the user's own and run all its tiles once; the answer is the contents of all buffers, one after the
    /// other.
    Run {
        /// Text of [`custom::module`](crate::custom::module).
        mlir: String,
        /// Tiles of a launch.
        tiles: u64,
        /// Scratch it needs.
        scratch_bytes: u64,
        /// Name of the target.
        target: String,
        /// Contents of its buffers.
        buffers: Vec<Vec<u8>>,
    },
    /// Compile the step program to an object.
    Step {
        /// JSON of the [`Program`](crate::program::Program).
        program: String,
        /// Symbol and number of tiles of each of its kernels.
        kernels: Vec<(String, u64)>,
        /// Name of the target.
        target: String,
        /// Name of the back end.
        codegen: String,
    },
    /// Die the way LLVM does; how a test sees what then happens.
    Abort,
}

/// How to start a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCommand {
    /// Executable.
    pub program: PathBuf,
    /// Arguments.
    pub arguments: Vec<String>,
}

impl WorkerCommand {
    /// This executable with [`WORKER_ARGUMENT`].
    ///
    /// # Errors
    /// The system does not tell where the executable is.
    pub fn this_executable() -> Result<WorkerCommand, String> {
        let program =
            std::env::current_exe().map_err(|e| format!("cannot find mlc's own executable: {e}"))?;
        Ok(WorkerCommand { program, arguments: vec![WORKER_ARGUMENT.to_string()] })
    }
}

fn send(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&len.to_le_bytes())?;
    stream.write_all(bytes)
}

/// The next message, `None` when the other side is gone.
fn receive(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    match stream.read_exact(&mut len) {
        Err(e) if matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            return Ok(None);
        }
        other => other?,
    }
    let len = u32::from_le_bytes(len);
    if len > MAX_MESSAGE_BYTES {
        return Err(io::Error::other("a message is too long"));
    }
    let mut bytes = vec![0; len as usize];
    match stream.read_exact(&mut bytes) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other.map(|()| Some(bytes)),
    }
}

// ---- the worker's side

/// Serves requests until the other side is gone; the whole `main` of a worker process. Returns the exit code.
pub fn worker_main() -> i32 {
    match serve() {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("worker: {e}");
            1
        }
    }
}

fn serve() -> io::Result<()> {
    let input: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    let mut stream = UnixStream::from(input);
    let mut server = Server::new();
    while let Some(bytes) = receive(&mut stream)? {
        let request: Request = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
        let (tag, body) = match server.answer(&request) {
            Ok(object) => (0, object),
            Err(message) => (1, message.into_bytes()),
        };
        let mut answer = vec![tag];
        answer.extend(body);
        send(&mut stream, &answer)?;
    }
    Ok(())
}

/// Answers requests; keeps the compiler between them.
#[derive(Default)]
pub(crate) struct Server {
    compiler: Compiler,
}

impl Server {
    pub(crate) fn new() -> Server {
        Server::default()
    }

    pub(crate) fn answer(&mut self, request: &Request) -> Result<Vec<u8>, String> {
        match request {
            Request::Kernel { kir, symbol, target, codegen } => {
                let kernel = crate::kir::parse(kir).map_err(|e| format!("the kernel's text: {e}"))?;
                let (codegen, target) = (Codegen::by_name(codegen)?, Target::by_name(target)?);
                self.compiler.kernel(codegen, &kernel, symbol, &target)
            }
            Request::Custom { mlir, symbol, target, codegen } => {
                let (codegen, target) = (Codegen::by_name(codegen)?, Target::by_name(target)?);
                self.compiler.custom(codegen, mlir, symbol, &target)
            }
            Request::Run { mlir, tiles, scratch_bytes, target, buffers } => {
                let symbol = "custom";
                let object = self.compiler.custom(Codegen::Llvm, mlir, symbol, &Target::by_name(target)?)?;
                crate::run::custom_kernel(object, symbol, *tiles, *scratch_bytes, buffers.clone())
            }
            Request::Step { program, kernels, target, codegen } => {
                let program: Program =
                    serde_json::from_str(program).map_err(|e| format!("the program's text: {e}"))?;
                let info = serde_json::to_vec(&program.info).map_err(|e| e.to_string())?;
                let link =
                    |(symbol, tiles): &(String, u64)| KernelLink { symbol: symbol.clone(), tiles: *tiles };
                let kernels: Vec<KernelLink> = kernels.iter().map(link).collect();
                let (codegen, target) = (Codegen::by_name(codegen)?, Target::by_name(target)?);
                self.compiler.step(codegen, &program, &kernels, &info, &target)
            }
            Request::Abort => std::process::abort(),
        }
    }
}

// ---- the compiler's side

/// Why a request has no object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The worker answered so and lives.
    Refused(String),
    /// The worker died; what it had printed.
    Died(String),
    /// The worker does not start.
    NotStarted(String),
}

/// A running worker.
pub(crate) struct Worker {
    child: Child,
    stream: UnixStream,
}

impl Worker {
    pub(crate) fn start(command: &WorkerCommand) -> Result<Worker, Failure> {
        let failed =
            |e: io::Error| Failure::NotStarted(format!("cannot start {}: {e}", command.program.display()));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let child = Command::new(&command.program)
            .args(&command.arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        Ok(Worker { child, stream: ours })
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Vec<u8>, Failure> {
        let json = serde_json::to_vec(request).map_err(|e| Failure::Refused(e.to_string()))?;
        let answer = send(&mut self.stream, &json).and_then(|()| receive(&mut self.stream));
        match answer {
            Ok(Some(mut bytes)) if bytes.first() == Some(&0) => Ok(bytes.split_off(1)),
            Ok(Some(bytes)) if bytes.first() == Some(&1) => {
                Err(Failure::Refused(String::from_utf8_lossy(&bytes[1..]).into_owned()))
            }
            Ok(_) | Err(_) => Err(Failure::Died(self.last_words())),
        }
    }

    /// How the worker ended and the last lines it printed.
    fn last_words(&mut self) -> String {
        // A worker that lives, but talks nonsense, ends with its socket.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let mut printed = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let mut bytes = Vec::new();
            // What can be read is read; the exit status below says the rest.
            let _ = stderr.read_to_end(&mut bytes);
            printed = String::from_utf8_lossy(&bytes).into_owned();
        }
        let ended = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        let lines: Vec<&str> = printed.lines().filter(|l| !l.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(8)..].join("\n");
        if tail.is_empty() { ended } else { format!("{ended}\n{tail}") }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The worker ends when its socket closes; waiting for it leaves no zombie.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}
