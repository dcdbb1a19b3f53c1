//! Which interpreter and which directory a new session gets, as absolute paths
//! and a reason in words.
//!
//! Paths are kept as given: following the links of a virtual environment's
//! `bin/python` would lead out of it.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// What the process sees around it.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Current directory, absolute.
    pub(crate) cwd: PathBuf,
    /// `VIRTUAL_ENV`.
    pub(crate) virtual_env: Option<OsString>,
    /// `PATH`.
    pub(crate) path: Option<OsString>,
    /// Who we are.
    pub(crate) uid: u32,
}

impl Surroundings {
    /// Those of this process.
    pub(crate) fn of_process() -> Result<Self, EnvironmentError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Ok(Self {
            cwd: std::env::current_dir().map_err(|source| EnvironmentError::NoCwd { source })?,
            virtual_env: variable("VIRTUAL_ENV"),
            path: variable("PATH"),
            uid: rustix::process::geteuid().as_raw(),
        })
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish<'a> {
    /// `--python`.
    Python(&'a str),
    /// `--venv`.
    Venv(&'a str),
    /// Neither.
    Default,
}

/// An interpreter, and why this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interpreter {
    /// Absolute path.
    pub(crate) python: String,
    /// In words.
    pub(crate) reason: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolution {
    /// None leaves the choice to the daemon.
    pub(crate) interpreter: Option<Interpreter>,
    /// Environments that were passed over because they are somebody else's.
    pub(crate) foreign: Vec<PathBuf>,
}

/// An environment that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvironmentError {
    #[error("the current directory cannot be told")]
    NoCwd { source: std::io::Error },
    #[error("`{}` is no directory", .0.display())]
    NoDirectory(PathBuf),
    #[error("no interpreter at `{}`", .0.display())]
    NoInterpreter(PathBuf),
    #[error("`{}` cannot be executed", .0.display())]
    NotExecutable(PathBuf),
    #[error("no `{0}` on the PATH")]
    NotOnPath(String),
    #[error("`{}` is no virtual environment: it has no `bin/python`", .0.display())]
    NoVenv(PathBuf),
    #[error("the active VIRTUAL_ENV `{}` has no `bin/python`", .0.display())]
    BrokenActive(PathBuf),
    #[error("`{path}` is no absolute path")]
    NotAbsolute {
        path: String,
        /// Whose machine it is on; none for that of `PYTHOND_HOST`.
        remote: Option<String>,
    },
    #[error("`{}` is not UTF-8", .0.display())]
    NotUtf8(PathBuf),
}

impl EnvironmentError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Cow<'static, str> {
        let hint = match self {
            Self::NoCwd { .. } => "change to a directory that exists, or give one with `--cwd`",
            Self::NoDirectory(_) => "give a directory that exists with `--cwd`",
            Self::NoInterpreter(_) | Self::NotExecutable(_) => {
                "give the path of a Python executable, or an environment's directory with `--venv`"
            }
            Self::NotOnPath(_) => "give the interpreter's path with `--python`",
            Self::NoVenv(_) => "make one with `python3 -m venv DIR`, or choose with `--python`",
            Self::BrokenActive(_) => "run `deactivate`, or choose with `--python` or `--venv`",
            Self::NotAbsolute {
                remote: Some(remote),
                ..
            } => {
                return format!(
                    "`{remote}` is a daemon on another machine: give the path that it has there"
                )
                .into();
            }
            Self::NotAbsolute { .. } => {
                "the daemon is on another machine (`PYTHOND_HOST`): give the path that it has there"
            }
            Self::NotUtf8(_) => "choose another path: the wire carries UTF-8 only",
        };
        hint.into()
    }
}

/// The interpreter for a new session.
pub(crate) fn resolve(
    wish: Wish<'_>,
    around: &Surroundings,
) -> Result<Resolution, EnvironmentError> {
    let chosen = |python: PathBuf, reason: String| {
        Ok(Resolution {
            interpreter: Some(Interpreter {
                python: utf8(python)?,
                reason,
            }),
            foreign: Vec::new(),
        })
    };
    match wish {
        Wish::Python(given) => {
            let python = if given.contains('/') {
                existing_interpreter(absolute(given, around))?
            } else {
                on_path(given, around)?
            };
            chosen(python, format!("--python {given}"))
        }
        Wish::Venv(given) => {
            let venv = absolute(given, around);
            let python = venv_python(&venv).ok_or(EnvironmentError::NoVenv(venv))?;
            chosen(python, format!("--venv {given}"))
        }
        Wish::Default => match &around.virtual_env {
            Some(active) => {
                let venv = absolute(active, around);
                let reason = format!("active VIRTUAL_ENV {}", venv.display());
                // A broken active environment is an error: any other Python
                // would run the code without its packages, silently.
                let python = venv_python(&venv).ok_or(EnvironmentError::BrokenActive(venv))?;
                chosen(python, reason)
            }
            None => nearest_dot_venv(around),
        },
    }
}

/// The session's working directory, absolute.
pub(crate) fn working_directory(
    given: Option<&str>,
    around: &Surroundings,
) -> Result<String, EnvironmentError> {
    let directory = match given {
        Some(given) => absolute(given, around),
        None => around.cwd.clone(),
    };
    if !directory.is_dir() {
        return Err(EnvironmentError::NoDirectory(directory));
    }
    utf8(directory)
}

/// The same for a daemon on another machine: nothing that is around us means
/// anything there, so only what was asked for is passed on, as paths of that machine.
pub(crate) fn resolve_elsewhere(
    wish: Wish<'_>,
    remote: Option<&str>,
) -> Result<Resolution, EnvironmentError> {
    let (python, reason) = match wish {
        Wish::Python(given) => (path_elsewhere(given, remote)?, format!("--python {given}")),
        Wish::Venv(given) => {
            let venv = path_elsewhere(given, remote)?;
            let python = format!("{}/bin/python", venv.trim_end_matches('/'));
            (python, format!("--venv {given}"))
        }
        Wish::Default => return Ok(Resolution::default()),
    };
    Ok(Resolution {
        interpreter: Some(Interpreter { python, reason }),
        foreign: Vec::new(),
    })
}

/// A path on another machine: a remote's, or that of `PYTHOND_HOST`.
pub(crate) fn path_elsewhere(
    given: &str,
    remote: Option<&str>,
) -> Result<String, EnvironmentError> {
    if Path::new(given).is_absolute() {
        Ok(given.to_owned())
    } else {
        Err(EnvironmentError::NotAbsolute {
            path: given.to_owned(),
            remote: remote.map(str::to_owned),
        })
    }
}

fn nearest_dot_venv(around: &Surroundings) -> Result<Resolution, EnvironmentError> {
    let mut found = Resolution::default();
    for directory in around.cwd.ancestors() {
        let venv = directory.join(".venv");
        let Some(python) = venv_python(&venv) else {
            continue;
        };
        if !is_trusted(&venv, around.uid) {
            found.foreign.push(venv);
            continue;
        }
        let reason = format!(".venv found in {}", directory.display());
        found.interpreter = Some(Interpreter {
            python: utf8(python)?,
            reason,
        });
        break;
    }
    Ok(found)
}

/// Belongs to the user or root, both the name and what it leads to: in a
/// directory like `/tmp` anybody can put a `.venv`, or a link, in our way.
fn is_trusted(path: &Path, uid: u32) -> bool {
    let mine = |found: std::io::Result<std::fs::Metadata>| {
        found.is_ok_and(|found| found.uid() == uid || found.uid() == 0)
    };
    mine(path.symlink_metadata()) && mine(path.metadata())
}

fn venv_python(venv: &Path) -> Option<PathBuf> {
    let python = venv.join("bin").join("python");
    is_executable_file(&python).then_some(python)
}

fn existing_interpreter(path: PathBuf) -> Result<PathBuf, EnvironmentError> {
    if is_executable_file(&path) {
        Ok(path)
    } else if path.is_file() {
        Err(EnvironmentError::NotExecutable(path))
    } else {
        Err(EnvironmentError::NoInterpreter(path))
    }
}

fn on_path(name: &str, around: &Surroundings) -> Result<PathBuf, EnvironmentError> {
    around
        .path
        .as_deref()
        .into_iter()
        .flat_map(std::env::split_paths)
        .map(|directory| absolute(directory, around).join(name))
        .find(|candidate| is_executable_file(candidate))
        .ok_or_else(|| EnvironmentError::NotOnPath(name.to_owned()))
}

fn is_executable_file(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

/// Made absolute by text alone: links stay, and so does `..`, which may lead
/// elsewhere behind a link.
fn absolute(path: impl AsRef<Path>, around: &Surroundings) -> PathBuf {
    let joined = around.cwd.join(path);
    std::path::absolute(&joined).unwrap_or(joined)
}

fn utf8(path: PathBuf) -> Result<String, EnvironmentError> {
    path.into_os_string()
        .into_string()
        .map_err(|path| EnvironmentError::NotUtf8(path.into()))
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
