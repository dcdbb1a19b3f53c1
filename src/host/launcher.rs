//! The executable of hosts: finds the environment's `libpython`, loads it, and
//! enters it with the environment's own name, so that `sys.executable`,
//! `sys.prefix` and site-packages are right. Calls no pyo3.
#![expect(
    unsafe_code,
    reason = "dlopen and the entry into Python have no safe wrapper"
)]
#![expect(
    clippy::print_stderr,
    reason = "what cannot start can only say so here"
)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

const BOOT: &str = include_str!("python/boot.py");
const PROBE: &str = include_str!("python/probe.py");
/// How long an interpreter may take to say what it is.
const PROBE_TIME: Duration = Duration::from_secs(20);
/// Oldest Python that sessions run on.
const OLDEST: (u32, u32) = (3, 10);

/// What an interpreter says of itself.
#[derive(Debug, Deserialize)]
struct Interpreter {
    executable: String,
    implementation: String,
    version: (u32, u32, u32),
    gil: bool,
    libraries: Vec<String>,
}

/// What the command line asks for.
#[derive(Debug, Default)]
struct Arguments {
    role: String,
    python: String,
    runtime_dir: String,
    key: String,
    preload: Vec<String>,
    cold: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(status) => ExitCode::from(status),
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8, String> {
    let arguments = parse(std::env::args().skip(1))?;
    close_inherited();
    let launcher = std::fs::read_link("/proc/self/exe")
        .map_err(|error| format!("cannot find this executable: {error}"))?;
    let library = host_library(&launcher)?;
    let interpreter = probe(&arguments.python)?;
    let launch = json!({
        "role": arguments.role,
        "launcher": launcher,
        "python": arguments.python,
        "runtime_dir": arguments.runtime_dir,
        "key": arguments.key,
        "preload": arguments.preload,
        "cold": arguments.cold,
    });
    let words = [
        interpreter.executable.clone(),
        "-c".to_owned(),
        BOOT.to_owned(),
        library.display().to_string(),
        launch.to_string(),
    ];
    for path in &interpreter.libraries {
        if let Some(entry) = load(path) {
            return enter(entry, &words);
        }
    }
    // No shared libpython: the interpreter itself loads the same library.
    let error = Command::new(&words[0]).args(&words[1..]).exec();
    Err(format!(
        "cannot start `{}`: {error}",
        interpreter.executable
    ))
}

/// Lets go of what whoever started the daemon had open: a session would keep it
/// open for days.
fn close_inherited() {
    // SAFETY: nothing in this process has opened a descriptor above 2 that it
    // still uses. std has no way to do this.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let role = words.next().unwrap_or_default();
    if role == "--version" || role == "-V" {
        return Err(format!("pythond-host {}", env!("CARGO_PKG_VERSION")));
    }
    if !matches!(role.as_str(), "zygote" | "host") {
        return Err("pythond-host is started by pythond; run `pythond daemon`".to_owned());
    }
    let mut arguments = Arguments {
        role,
        ..Arguments::default()
    };
    while let Some(word) = words.next() {
        let value = words
            .next()
            .ok_or_else(|| format!("`{word}` needs a value"))?;
        match word.as_str() {
            "--python" => arguments.python = value,
            "--runtime-dir" => arguments.runtime_dir = value,
            "--key" => arguments.key = value,
            "--cold" => arguments.cold = Some(value),
            "--preload" => arguments.preload = value.split(',').map(str::to_owned).collect(),
            _ => return Err(format!("unknown option `{word}`")),
        }
    }
    Ok(arguments)
}

/// The host library: beside the launcher, or where `make install` puts it.
fn host_library(launcher: &Path) -> Result<PathBuf, String> {
    const NAME: &str = "libpythond_host.so";
    let folder = launcher.parent().unwrap_or(Path::new("/"));
    let places = [folder.join(NAME), folder.join("../lib/pythond").join(NAME)];
    places
        .iter()
        .find(|place| place.is_file())
        .cloned()
        .ok_or_else(|| {
            format!(
                "cannot find `{NAME}` beside `{}` or in `../lib/pythond`",
                launcher.display()
            )
        })
}

/// Asks an interpreter what it is.
fn probe(python: &str) -> Result<Interpreter, String> {
    let unusable = |what: String| format!("cannot use the interpreter `{python}`: {what}");
    let mut child = Command::new(python)
        .args(["-I", "-S", "-c", PROBE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| unusable(error.to_string()))?;
    let answer = wait_for_answer(&mut child).map_err(&unusable)?;
    let interpreter: Interpreter = serde_json::from_str(answer.trim())
        .map_err(|_| unusable("it does not answer as a Python does".to_owned()))?;
    let (major, minor, micro) = interpreter.version;
    if interpreter.implementation != "cpython" {
        return Err(unusable(format!(
            "it is {}, and only CPython is supported",
            interpreter.implementation
        )));
    }
    if (major, minor) < OLDEST {
        return Err(unusable(format!(
            "it is Python {major}.{minor}.{micro}, and sessions need {}.{} or newer",
            OLDEST.0, OLDEST.1
        )));
    }
    if !interpreter.gil {
        return Err(unusable(
            "builds without the interpreter lock are not supported".to_owned(),
        ));
    }
    if interpreter.executable.is_empty() {
        return Err(unusable("it does not know its own path".to_owned()));
    }
    Ok(interpreter)
}

fn wait_for_answer(child: &mut std::process::Child) -> Result<String, String> {
    let deadline = Instant::now() + PROBE_TIME;
    let mut answer = String::new();
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    // Short answers fit the pipe, so the process can end before they are read.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => {
                std::thread::park_timeout(Duration::from_millis(2))
            }
            Ok(None) => {
                // It is ours and not reaped yet.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "it does not answer within {} s",
                    PROBE_TIME.as_secs()
                ));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    if status.success() {
        if let Some(stdout) = &mut stdout {
            stdout
                .read_to_string(&mut answer)
                .map_err(|error| error.to_string())?;
        }
        return Ok(answer);
    }
    if let Some(stderr) = &mut stderr {
        // Without its words only the status is left to tell.
        let _ = stderr.take(64 << 10).read_to_string(&mut answer);
    }
    let last = answer
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("")
        .trim();
    if last.is_empty() {
        Err(format!("it ends with {status}"))
    } else {
        Err(format!("it ends with {status}: {last}"))
    }
}

type Entry = unsafe extern "C" fn(c_int, *mut *mut c_char) -> c_int;

/// Loads a libpython for everybody: extension modules look for its symbols.
fn load(path: &str) -> Option<Entry> {
    let path = CString::new(path).ok()?;
    // SAFETY: the path is a C string; loading runs the library's own
    // initialisers, as starting that Python would.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        return None;
    }
    let name: &CStr = c"Py_BytesMain";
    // SAFETY: the handle is open, the name a C string.
    let symbol = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    // SAFETY: `int Py_BytesMain(int, char **)` is part of CPython's stable ABI.
    Some(unsafe { std::mem::transmute::<*mut libc::c_void, Entry>(symbol) })
}

fn enter(entry: Entry, words: &[String]) -> Result<u8, String> {
    let words: Vec<CString> = words
        .iter()
        .map(|word| CString::new(word.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| "an argument holds a NUL byte".to_owned())?;
    let mut pointers: Vec<*mut c_char> =
        words.iter().map(|word| word.as_ptr().cast_mut()).collect();
    pointers.push(std::ptr::null_mut());
    let count = c_int::try_from(words.len()).map_err(|error| error.to_string())?;
    // SAFETY: `count` C strings and a null, all alive until the call returns;
    // Python does not write to them.
    let status = unsafe { entry(count, pointers.as_mut_ptr()) };
    Ok(u8::try_from(status).unwrap_or(1))
}
