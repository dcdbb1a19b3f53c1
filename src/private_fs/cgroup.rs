//! Control groups of the kernel (cgroups(7), version 2), where one was handed to
//! us: the daemon and its zygotes are in a leaf of it, and each session that is
//! limited so has a group of its own beside that.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// The group of the daemon and its zygotes. A group that hands out controllers
/// must have no processes of its own.
const LEAF: &str = "daemon";
/// How names of sessions' groups begin; the process id of the host follows.
const SESSION: &str = "session-";
/// Is there where systemd runs.
const SYSTEMD: &str = "/run/systemd/system";
/// What sessions can be limited by.
const CONTROLLERS: [&str; 3] = ["pids", "memory", "cpu"];

/// A group that was handed to us.
#[derive(Clone, Debug)]
pub struct Delegated {
    directory: PathBuf,
    controllers: Vec<String>,
}

/// A session's group.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Delegated {
    /// Takes what was handed to this process: moves it to the leaf, and lets
    /// groups beside that be limited.
    ///
    /// # Errors
    /// Why nothing was handed to us, in words.
    pub fn take() -> Result<Self, String> {
        let (root, own) = own().ok_or("there is no cgroup v2 here")?;
        if let Some(found) = Self::of_leaf() {
            return found.enable();
        }
        if own == root {
            return Err("the daemon is in the root group".to_owned());
        }
        if Path::new(SYSTEMD).exists() {
            // systemd could not start the next daemon in a group that hands out
            // controllers.
            return Err(format!(
                "the daemon was not started in the subgroup `{LEAF}` (`DelegateSubgroup=`, systemd 254)"
            ));
        }
        if !is_handed_over(&own) {
            return Err("the daemon's group is not delegated to it".to_owned());
        }
        let me = rustix::process::getpid().as_raw_nonzero().to_string();
        let there = std::fs::read_to_string(own.join("cgroup.procs")).map_err(words)?;
        if there.lines().any(|pid| pid != me) {
            return Err("the daemon is not alone in its group".to_owned());
        }
        let leaf = own.join(LEAF);
        match std::fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(words(error)),
            _ => {}
        }
        set(&leaf, "cgroup.procs", &me).map_err(words)?;
        let taken = Self {
            directory: own.clone(),
            controllers: Vec::new(),
        };
        taken.enable().inspect_err(|_| {
            // As it was before, if that can be.
            let _ = set(&own, "cgroup.procs", &me);
            let _ = std::fs::remove_dir(&leaf);
        })
    }

    /// What a daemon has taken, for a process that is in its leaf.
    #[must_use]
    pub fn of_leaf() -> Option<Self> {
        let (root, own) = own()?;
        let directory = own.parent().filter(|_| own.ends_with(LEAF))?.to_owned();
        if directory == root || !is_handed_over(&directory) {
            return None;
        }
        let controllers = list(&directory, "cgroup.subtree_control");
        Some(Self {
            directory,
            controllers,
        })
    }

    fn enable(mut self) -> Result<Self, String> {
        let there = list(&self.directory, "cgroup.controllers");
        for controller in CONTROLLERS {
            if there.iter().any(|it| it == controller) {
                // What does not work is missed below.
                let word = format!("+{controller}");
                let _ = set(&self.directory, "cgroup.subtree_control", &word);
            }
        }
        self.controllers = list(&self.directory, "cgroup.subtree_control");
        if CONTROLLERS.iter().any(|it| self.has(it)) {
            Ok(self)
        } else {
            Err("the daemon's group can limit nothing".to_owned())
        }
    }

    /// Sessions can be limited by this.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|it| it == controller)
    }

    /// Moves a process into a group of its own, with these limits: controller,
    /// file, value. What cannot be limited here is left out.
    ///
    /// # Errors
    /// What the system says; then there is no group.
    pub fn enclose(&self, pid: i32, limits: &[(&str, &str, u64)]) -> io::Result<Group> {
        let group = Group(self.directory.join(format!("{SESSION}{pid}")));
        std::fs::create_dir(&group.0)?;
        let limited = limits
            .iter()
            .filter(|(controller, _, _)| self.has(controller))
            .try_for_each(|(_, file, value)| set(&group.0, file, &value.to_string()))
            .and_then(|()| set(&group.0, "cgroup.procs", &pid.to_string()));
        if limited.is_err() {
            group.remove();
        }
        limited.map(|()| group)
    }

    /// Removes the groups of sessions that are gone.
    pub fn sweep(&self) {
        for entry in std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with(SESSION) {
                // One that has processes stays.
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    }
}

impl Group {
    /// The group that this process was moved into, if it was.
    #[must_use]
    pub fn own() -> Option<Self> {
        let (_, own) = own()?;
        let name = format!("{SESSION}{}", rustix::process::getpid().as_raw_nonzero());
        own.ends_with(name).then_some(Self(own))
    }

    /// True if it has this file, and so the controller that the file is of.
    #[must_use]
    pub fn has(&self, file: &str) -> bool {
        self.0.join(file).exists()
    }

    /// How often something happened: a word of one of its files of events.
    #[must_use]
    pub fn count(&self, file: &str, word: &str) -> u64 {
        let text = std::fs::read_to_string(self.0.join(file)).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Removes it. False if there are processes in it.
    pub fn remove(&self) -> bool {
        match std::fs::remove_dir(&self.0) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// Where the hierarchy is mounted, and the group that this process is in.
fn own() -> Option<(PathBuf, PathBuf)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut words = mount.split(' ').skip(3);
        let (root, place) = (words.next()?, words.next()?);
        if !kind.starts_with("cgroup2 ") {
            return None;
        }
        let within = Path::new(group).strip_prefix(root).ok()?;
        let place = PathBuf::from(place);
        // Joining nothing would add a slash.
        let own = place.components().chain(within.components()).collect();
        Some((place, own))
    })
}

/// Whoever may write there was given it; of root only systemd's mark tells.
fn is_handed_over(group: &Path) -> bool {
    let writable = ["cgroup.procs", "cgroup.subtree_control"]
        .iter()
        .all(|file| rustix::fs::access(group.join(file), Access::WRITE_OK).is_ok());
    let marked = || {
        ["trusted.delegate", "user.delegate"].iter().any(|name| {
            let mut value = [0; 8];
            rustix::fs::getxattr(group, *name, &mut value[..]).is_ok_and(|_| value[0] == b'1')
        })
    };
    let root = rustix::process::geteuid().is_root();
    writable && (!root || !Path::new(SYSTEMD).exists() || marked())
}

fn list(group: &Path, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The kernel's files take one write, and nothing is made where there is none.
fn set(group: &Path, file: &str, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(group.join(file))?;
    file.write_all(value.as_bytes())
}

fn words(error: io::Error) -> String {
    format!("the daemon's group cannot be used: {error}")
}
