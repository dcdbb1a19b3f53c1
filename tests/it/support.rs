//! A daemon with a home, a socket and processes of its own; a raw client of its
//! wire; the one place where time passes.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pythond_protocol::verbs::cell::CellReply;
use pythond_protocol::verbs::interrupt::InterruptReply;
use pythond_protocol::verbs::list::{ListReply, SessionSummary};
use pythond_protocol::verbs::new::NewReply;
use pythond_protocol::verbs::status::StatusReply;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use tungstenite::{Message, WebSocket};

/// How long anything may take that must happen.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long processes may take to end once they were told to.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// Pause between two looks at a predicate.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// What a daemon needs beside `pythond` itself.
const SIBLINGS: [&str; 3] = ["pythond-host", "libpythond_host.so", "pyctl"];

/// Looks until the predicate holds or the time is over; says whether it held.
pub(crate) fn wait_until(deadline: Duration, mut predicate: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if predicate() {
            return true;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(left.min(LOOK_AGAIN));
    }
}

/// Waits for what must come true.
pub(crate) fn eventually(what: &str, predicate: impl FnMut() -> bool) {
    assert!(
        wait_until(DEADLINE, predicate),
        "not within {DEADLINE:?}: {what}"
    );
}

/// Numbers that are the same in every run (splitmix64).
pub(crate) struct Instants(u64);

impl Instants {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Lets a time below `bound` pass.
    pub(crate) fn pass(&mut self, bound: Duration) {
        let micros = u64::try_from(bound.as_micros()).unwrap();
        wait_until(Duration::from_micros(self.below(micros)), || false);
    }
}

/// A text message out, a text message in; nothing is hidden.
pub(crate) struct Wire {
    socket: WebSocket<UnixStream>,
}

impl Wire {
    fn open(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let (socket, _) = tungstenite::client::client("ws://localhost/", stream)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self { socket })
    }

    pub(crate) fn try_send(&mut self, text: &str) -> Result<(), tungstenite::Error> {
        self.socket.send(Message::text(text))
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.try_send(text).unwrap();
    }

    /// The next answer; an error once the daemon is gone.
    pub(crate) fn try_receive(&mut self) -> Result<String, tungstenite::Error> {
        loop {
            match self.socket.read()? {
                Message::Text(text) => return Ok(text.as_str().to_owned()),
                Message::Close(_) => return Err(tungstenite::Error::ConnectionClosed),
                _ => {}
            }
        }
    }

    pub(crate) fn receive(&mut self) -> String {
        self.try_receive().unwrap()
    }

    pub(crate) fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.receive()
    }

    pub(crate) fn json<T: DeserializeOwned>(&mut self, text: &str) -> T {
        let answer = self.ask(text);
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// Hands a cell in and does not wait.
    pub(crate) fn submit(&mut self, session: &str, code: &str) {
        self.send(&format!("run {session} --json\n{code}"));
    }

    /// The answer to a cell that was handed in.
    pub(crate) fn outcome(&mut self) -> CellReply {
        let answer = self.receive();
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    pub(crate) fn run(&mut self, session: &str, code: &str) -> CellReply {
        self.submit(session, code);
        self.outcome()
    }

    /// The shown value of a cell that must succeed.
    pub(crate) fn value(&mut self, session: &str, code: &str) -> String {
        let reply = self.run(session, code);
        assert!(reply.ok, "{reply:?}");
        reply.result.unwrap_or_default()
    }

    /// Creates a session that must come to life.
    pub(crate) fn create(&mut self, session: &str) -> NewReply {
        self.json(&format!("new {session} --json"))
    }

    pub(crate) fn status(&mut self, session: &str) -> StatusReply {
        self.json(&format!("status {session} --json"))
    }

    pub(crate) fn interrupt(&mut self, session: &str) -> InterruptReply {
        self.json(&format!("int {session} --json"))
    }

    pub(crate) fn sessions(&mut self) -> Vec<SessionSummary> {
        self.json::<ListReply>("ls --json").sessions
    }
}

/// `pythond daemon` of one test, gone with all its processes on drop.
pub(crate) struct TestDaemon {
    root: tempfile::TempDir,
    binaries: PathBuf,
    process: Option<Child>,
}

impl TestDaemon {
    /// Starts a daemon and waits until it answers.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// The same with a configuration file.
    pub(crate) fn start_with(settings: &str) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_pythond"));
        let binaries = program.parent().unwrap().to_owned();
        for sibling in SIBLINGS {
            assert!(
                binaries.join(sibling).exists(),
                "`{sibling}` is missing beside `pythond`: run `cargo build --workspace` first"
            );
        }
        let root = tempfile::Builder::new()
            .prefix("pd-")
            .permissions(fs::Permissions::from_mode(0o700))
            // The path of a socket has at most 107 bytes.
            .tempdir_in("/tmp")
            .unwrap();
        let configuration = root.path().join("home/.config/pythond");
        fs::create_dir_all(&configuration).unwrap();
        let mut file = File::create(configuration.join("config.toml")).unwrap();
        io::Write::write_all(&mut file, settings.as_bytes()).unwrap();
        let mut daemon = Self {
            root,
            binaries,
            process: None,
        };
        daemon.start_again();
        daemon
    }

    /// Starts the next daemon in the same place and waits until it answers.
    pub(crate) fn start_again(&mut self) {
        assert!(self.process.is_none(), "a daemon runs already");
        let log = self.log();
        let errors = log.try_clone().unwrap();
        let child = self
            .command("pythond")
            .arg("daemon")
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .unwrap();
        self.process = Some(child);
        let socket = self.socket();
        let child = self.process.as_mut().unwrap();
        let mut ended = None;
        let answers = wait_until(DEADLINE, || {
            ended = child.try_wait().unwrap();
            ended.is_some()
                || Wire::open(&socket)
                    .is_ok_and(|mut wire| wire.try_send("ls").is_ok() && wire.try_receive().is_ok())
        });
        assert!(
            answers && ended.is_none(),
            "the daemon does not answer, end {ended:?}:\n{}",
            self.log_text()
        );
    }

    /// Ends the daemon with SIGKILL; its sessions stay.
    pub(crate) fn crash(&mut self) {
        let mut child = self.process.take().expect("a daemon runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.process.as_ref().expect("a daemon runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Tells the daemon to stop, and waits for the end of it.
    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.process.take() else {
            return;
        };
        // One that is ill does not answer; it is killed below.
        let mut asked = self.command("pyctl").arg("stop").spawn().unwrap();
        let ended = wait_until(END_DEADLINE, || child.try_wait().unwrap().is_some());
        let _ = asked.kill();
        asked.wait().unwrap();
        if !ended {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(
            ended || std::thread::panicking(),
            "the daemon did not stop:\n{}",
            self.log_text()
        );
    }

    pub(crate) fn connect(&self) -> Wire {
        Wire::open(&self.socket()).unwrap()
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Where sockets of hosts and zygotes are.
    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.root().join("d.sock.d")
    }

    /// Names of the sockets of sessions.
    pub(crate) fn host_sockets(&self) -> Vec<String> {
        let entries = fs::read_dir(self.runtime_dir()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("h-") && name.ends_with(".sock"))
            .collect()
    }

    /// Living processes of this daemon, itself included: process id and
    /// command line.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let home = [b"HOME=", self.home().as_os_str().as_bytes(), b"\0"].concat();
        let runtime = self.runtime_dir().into_os_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().and_then(OsStr::to_str);
            let Some(pid) = name.and_then(|name| name.parse().ok()) else {
                continue;
            };
            // What ends meanwhile has no files any more.
            let read = |file| fs::read(path.join(file)).unwrap_or_default();
            let arguments = read("cmdline");
            let ours =
                contains(&read("environ"), &home) || contains(&arguments, runtime.as_bytes());
            if ours && !is_zombie(&read("stat")) {
                let words = String::from_utf8_lossy(&arguments).replace('\0', " ");
                found.push((pid, words));
            }
        }
        found
    }

    /// Waits until no process of this daemon is left; gives those that are.
    pub(crate) fn processes_left(&self) -> Vec<(i32, String)> {
        wait_until(END_DEADLINE, || self.processes().is_empty());
        self.processes()
    }

    fn socket(&self) -> PathBuf {
        self.root().join("d.sock")
    }

    fn home(&self) -> PathBuf {
        self.root().join("home")
    }

    fn log(&self) -> File {
        let path = self.root().join("daemon.log");
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap()
    }

    /// What the daemon wrote.
    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(self.root().join("daemon.log")).unwrap_or_default()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LANG", "C.UTF-8")
            .env("HOME", self.home())
            .env("PYTHOND_SOCK", self.socket())
            .current_dir(self.root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        let orderly = self.process.is_some() && !std::thread::panicking();
        if std::thread::panicking() {
            let _ = io::Write::write_all(&mut io::stderr(), self.log_text().as_bytes());
        }
        self.stop();
        let left = if orderly {
            self.processes_left()
        } else {
            self.processes()
        };
        wait_until(END_DEADLINE, || {
            let living = self.processes();
            for (pid, _) in &living {
                kill(*pid);
            }
            living.is_empty()
        });
        assert!(
            !orderly || left.is_empty(),
            "processes outlived their daemon: {left:?}"
        );
    }
}

/// Kills a process; one that is gone already is fine.
pub(crate) fn kill(pid: i32) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// It has ended and waits to be reaped.
fn is_zombie(stat: &[u8]) -> bool {
    let after_name = stat.iter().rposition(|byte| *byte == b')').unwrap_or(0);
    stat.get(after_name + 2).is_none_or(|state| *state == b'Z')
}

/// What a cell waits at until the test lets it go.
pub(crate) struct Gate {
    path: PathBuf,
}

impl Gate {
    pub(crate) fn new(daemon: &TestDaemon, name: &str) -> Self {
        Self {
            path: daemon.root().join(name),
        }
    }

    /// Code that waits; a gate may be passed many times.
    pub(crate) fn code(&self) -> String {
        format!(
            "import os, time\nwhile not os.path.exists({:?}): time.sleep(0.002)\n",
            self.path
        )
    }

    pub(crate) fn open(&self) {
        File::create(&self.path).unwrap();
    }
}
