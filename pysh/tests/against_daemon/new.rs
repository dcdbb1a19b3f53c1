//! `pysh new` on this machine.

use super::support::ScriptedDaemon;
use super::{output, pysh};

#[test]
fn a_new_session_gets_absolute_paths_and_reasons() {
    let daemon = ScriptedDaemon::start(|frame| {
        let (header, body) = frame.split_once('\n').unwrap();
        assert_eq!(header, "new work --json");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["python_reason"], "--venv env");
        assert_eq!(body["env"], serde_json::json!({ "A": "b=c" }));
        assert_eq!(body["preload"], serde_json::json!(["numpy", "pandas"]));
        assert!(body.get("replace").is_none());
        let python = body["python"].as_str().unwrap();
        assert_eq!(
            python,
            format!("{}/env/bin/python", body["cwd"].as_str().unwrap())
        );
        format!(
            r#"{{"ok":true,"session":"work","session_id":"00","gen":1,"pid":7,"python":
            {{"executable":"{python}","version":"3.11.7","reason":"--venv env"}},
            "start":"cold","cold_reason":"no zygote yet","replaced":false}}"#
        )
    });
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap();
    std::fs::create_dir_all(place.join("env/bin")).unwrap();
    std::os::unix::fs::symlink("/bin/sh", place.join("env/bin/python")).unwrap();
    let words = [
        "new",
        "work",
        "--venv",
        "env",
        "--env",
        "A=b=c",
        "--preload",
        "numpy,pandas",
    ];
    let found = output(pysh(&daemon, &words).current_dir(&place));
    let python = place.join("env/bin/python");
    let line = format!(
        "OK work pid=7 (Python 3.11.7, {}: --venv env)\n",
        python.display()
    );
    assert_eq!(
        found,
        (Some(0), line, "note: started cold: no zygote yet\n".into())
    );
}
