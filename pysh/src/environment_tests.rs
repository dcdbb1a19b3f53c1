//! Resolution in directories of its own.

use std::os::unix::fs::{PermissionsExt, chown, symlink};

use super::*;

struct Place {
    root: tempfile::TempDir,
    around: Surroundings,
}

fn place() -> Place {
    let root = tempfile::tempdir().unwrap();
    let cwd = root.path().join("project/src");
    std::fs::create_dir_all(&cwd).unwrap();
    let around = Surroundings {
        cwd,
        virtual_env: None,
        path: None,
        uid: rustix::process::geteuid().as_raw(),
    };
    Place { root, around }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn executable(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(&path)
            .unwrap()
            .set_permissions(PermissionsExt::from_mode(0o755))
            .unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn resolve(&self, wish: Wish<'_>) -> Result<Option<(String, String)>, String> {
        resolve(wish, &self.around)
            .map(|found| found.interpreter.map(|it| (it.python, it.reason)))
            .map_err(|error| error.to_string())
    }
}

fn found(python: &str, reason: impl Into<String>) -> Result<Option<(String, String)>, String> {
    Ok(Some((python.to_owned(), reason.into())))
}

#[test]
fn for_another_machine_only_what_was_asked_for_counts_and_is_not_looked_for_here() {
    let resolve = |wish| resolve_elsewhere(wish, None).map(|it| it.interpreter);
    assert_eq!(resolve(Wish::Default).unwrap(), None);
    for (wish, python, reason) in [
        (
            Wish::Python("/no/such/python"),
            "/no/such/python",
            "--python /no/such/python",
        ),
        (
            Wish::Venv("/no/such/venv/"),
            "/no/such/venv/bin/python",
            "--venv /no/such/venv/",
        ),
    ] {
        let found = resolve(wish).unwrap().unwrap();
        assert_eq!((&*found.python, &*found.reason), (python, reason));
    }
    for wish in [
        Wish::Python("python3"),
        Wish::Python("./python3"),
        Wish::Venv("venv"),
    ] {
        let error = resolve(wish).unwrap_err();
        assert!(
            matches!(error, EnvironmentError::NotAbsolute { .. }),
            "{wish:?}"
        );
        assert!(error.hint().contains("PYTHOND_HOST"));
    }
}

#[test]
fn nothing_around_leaves_the_choice_to_the_daemon() {
    let mut place = place();
    assert_eq!(place.resolve(Wish::Default), Ok(None));
    // A `.venv` without an interpreter is none.
    std::fs::create_dir(place.path("project/.venv")).unwrap();
    assert_eq!(place.resolve(Wish::Default), Ok(None));
    place.around.cwd = PathBuf::from("/");
    assert_eq!(place.resolve(Wish::Default), Ok(None));
}

#[test]
fn the_nearest_dot_venv_is_taken() {
    let place = place();
    let python = place.executable("project/.venv/bin/python");
    let directory = place.path("project");
    let reason = format!(".venv found in {}", directory.display());
    assert_eq!(place.resolve(Wish::Default), found(&python, reason));
    let nearer = place.executable("project/src/.venv/bin/python");
    let directory = place.path("project/src");
    let reason = format!(".venv found in {}", directory.display());
    assert_eq!(place.resolve(Wish::Default), found(&nearer, reason));
}

#[test]
fn a_dot_venv_of_somebody_else_is_passed_over_and_named() {
    let mut place = place();
    place.executable("project/src/.venv/bin/python");
    let venv = place.path("project/src/.venv");
    if place.around.uid == 0 {
        // What root owns is trusted by all, so root has to give it away.
        chown(&venv, Some(4242), None).unwrap();
    } else {
        place.around.uid += 1;
    }
    let found = resolve(Wish::Default, &place.around).unwrap();
    assert_eq!(found.interpreter, None);
    assert_eq!(found.foreign, [venv]);
}

#[test]
fn an_active_environment_wins_and_is_never_ignored() {
    let mut place = place();
    place.executable("project/.venv/bin/python");
    let python = place.executable("active/bin/python");
    let active = place.path("active");
    place.around.virtual_env = Some(active.clone().into());
    let reason = format!("active VIRTUAL_ENV {}", active.display());
    assert_eq!(place.resolve(Wish::Default), found(&python, reason));
    std::fs::remove_file(&python).unwrap();
    let error = place.resolve(Wish::Default).unwrap_err();
    assert_eq!(
        error,
        format!(
            "the active VIRTUAL_ENV `{}` has no `bin/python`",
            active.display()
        )
    );
}

#[test]
fn an_interpreter_keeps_its_path_even_if_it_is_a_link() {
    let place = place();
    let real = place.executable("real/python3.12");
    std::fs::create_dir_all(place.path("env/bin")).unwrap();
    symlink(&real, place.path("env/bin/python")).unwrap();
    let link = place.path("env/bin/python");
    let link = link.to_str().unwrap();
    assert_eq!(
        place.resolve(Wish::Python(link)),
        found(link, format!("--python {link}"))
    );
    let venv = place.path("env");
    let venv = venv.to_str().unwrap();
    assert_eq!(
        place.resolve(Wish::Venv(venv)),
        found(link, format!("--venv {venv}"))
    );
}

#[test]
fn relative_paths_start_at_the_current_directory() {
    let place = place();
    let python = place.executable("project/src/env/bin/python");
    assert_eq!(
        place.resolve(Wish::Python("./env/bin/python")),
        found(&python, "--python ./env/bin/python")
    );
    assert_eq!(
        place.resolve(Wish::Venv("env")),
        found(&python, "--venv env")
    );
    let cwd = place.around.cwd.to_str().unwrap();
    assert_eq!(
        working_directory(Some("env"), &place.around).unwrap(),
        format!("{cwd}/env")
    );
    assert_eq!(working_directory(None, &place.around).unwrap(), cwd);
}

#[test]
fn a_name_without_a_slash_is_looked_up_on_the_path() {
    let mut place = place();
    std::fs::create_dir_all(place.path("first")).unwrap();
    // A directory of that name and a file nobody may execute are passed over.
    std::fs::create_dir_all(place.path("second/python3.12")).unwrap();
    std::fs::File::create(place.path("first/python3.12")).unwrap();
    let python = place.executable("third/python3.12");
    let parts = ["first", "second", "third"].map(|name| place.path(name));
    place.around.path = Some(std::env::join_paths(parts).unwrap());
    assert_eq!(
        place.resolve(Wish::Python("python3.12")),
        found(&python, "--python python3.12")
    );
    assert_eq!(
        place.resolve(Wish::Python("python9")),
        Err("no `python9` on the PATH".to_owned())
    );
}

#[test]
fn what_is_missing_or_wrong_is_said() {
    let place = place();
    std::fs::File::create(place.path("text")).unwrap();
    std::fs::create_dir(place.path("empty")).unwrap();
    let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
    for (wish, error) in [
        (
            Wish::Python(&path("none")),
            format!("no interpreter at `{}`", path("none")),
        ),
        (
            Wish::Python(&path("empty")),
            format!("no interpreter at `{}`", path("empty")),
        ),
        (
            Wish::Python(&path("text")),
            format!("`{}` cannot be executed", path("text")),
        ),
        (
            Wish::Venv(&path("empty")),
            format!(
                "`{}` is no virtual environment: it has no `bin/python`",
                path("empty")
            ),
        ),
    ] {
        assert_eq!(place.resolve(wish), Err(error));
    }
    let error = working_directory(Some(&path("text")), &place.around).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`{}` is no directory", path("text"))
    );
}
