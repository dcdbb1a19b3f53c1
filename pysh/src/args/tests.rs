use std::time::Duration;

use clap::CommandFactory as _;

use super::*;

fn parse(words: &[&str]) -> Cli {
    let words = ["pysh"].iter().chain(words).map(Into::into).collect();
    Cli::parse_words(words).expect("a command line")
}

fn run(words: &[&str]) -> (bool, RunArgs) {
    let words: Vec<_> = ["run"].iter().chain(words).copied().collect();
    let cli = parse(&words);
    match cli.command {
        Some(Command::Run(args)) => (cli.json, args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn options_stand_before_or_after_the_code_and_the_rest_is_code() {
    for (words, json, code) in [
        (&["work", "1", "+", "1"][..], false, &["1", "+", "1"][..]),
        (&["work", "-1"], false, &["-1"]),
        (&["work", "-"], false, &["-"]),
        (&["work", "--json", "1"], true, &["1"]),
        (&["--json", "work", "1"], true, &["1"]),
        (&["work", "1", "--json"], true, &["1"]),
        (&["--json", "run", "1", "--json"], true, &["1"]),
        (&["work", "--", "1", "--json"], true, &["1"]),
        (&["--", "work", "1", "--json"], true, &["1"]),
        (&["work", "1", "--", "2", "--json"], true, &["1", "--", "2"]),
        (
            &["work", "1", "--json", "+", "1"],
            false,
            &["1", "--json", "+", "1"],
        ),
        (&["work", "1", "--queue"], false, &["1", "--queue"]),
        (&["work", "1", "--timeout"], false, &["1", "--timeout"]),
        (&["work", ""], false, &[""]),
        // The only word is code, whatever it looks like.
        (&["work", "--", "--json"], false, &["--json"]),
    ] {
        let (found_json, args) = run(words);
        assert_eq!(
            (found_json, args.source.code),
            (json, strings(code)),
            "{words:?}"
        );
    }
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn options_after_the_code_mean_what_they_mean_before_it() {
    let options = [
        "--echo",
        "--timeout=0.5",
        "--wait=2",
        "--busy=fail",
        "--id=k",
        "--author=ann",
        "--cancel-on-disconnect",
    ];
    let before: Vec<_> = options.iter().chain(&["work", "1"]).copied().collect();
    let after: Vec<_> = ["work", "1"].iter().chain(&options).copied().collect();
    for words in [before, after] {
        let (_, args) = run(&words);
        assert!(args.echo.echo && args.cancel_on_disconnect && !args.detach);
        assert_eq!(args.timeout, Some(Duration::from_millis(500)));
        assert_eq!(args.wait, Some(Duration::from_secs(2)));
        assert_eq!(args.busy, Busy::Fail);
        assert_eq!(args.label.id.as_deref(), Some("k"));
        assert_eq!(args.label.author.as_deref(), Some("ann"));
        assert_eq!(args.source.code, ["1"]);
    }
    let Some(Command::Fire(args)) = parse(&["fire", "fire", "1", "--detach", "--queue"]).command
    else {
        panic!()
    };
    assert!(args.queue);
    assert_eq!(args.source.code, ["1", "--detach"]);
}

#[test]
fn the_last_of_several_counts() {
    let (_, args) = run(&["--echo", "--no-echo", "work", "1"]);
    assert!(args.echo.no_echo && !args.echo.echo);
    let (_, args) = run(&["--no-echo", "work", "1", "--echo"]);
    assert!(args.echo.echo && !args.echo.no_echo);
    let (_, args) = run(&["--timeout", "1", "--timeout", "2", "work", "1"]);
    assert_eq!(args.timeout, Some(Duration::from_secs(2)));
}

#[test]
fn wrong_lines_are_refused() {
    for words in [
        &["run", "work"][..],
        &["run", "Work", "1"],
        &["run", "work", "--timeout", "x", "1"],
        &["run", "work", "1", "--timeout=-1"],
        &["run", "work", "1", "--busy=maybe"],
        &["run", "work", "1", "--id="],
        &["run", "--author", "Ann Lee", "work", "1"],
        &["run", "--detach", "--wait", "1", "work", "1"],
        &["fire", "work"],
        &["fire", "--detach", "work", "1"],
        &["poll"],
        &["poll", "a", "Nonsense"],
        &["poll", "a", "00ab00000007", "00ab00000008"],
        &["wait"],
        &["out", "a"],
        &["out", "a", "00ab00000007", "--since", "-1"],
        &["out", "a", "00ab00000007", "--stdout", "--stderr"],
        &["cells"],
        &["int"],
        &["events", "a", "b", "c"],
        &["new"],
        &["new", "con"],
        &["new", "a", "--python", "p", "--venv", "v"],
        &["new", "a", "--env", "=x"],
        &["new", "a", "--env", "x"],
        &["new", "a", "b", "c"],
        &["new", "a", "B"],
        &["kill"],
        &["kill", "a", "--all"],
        &["ls", "a", "b"],
        &["attach", "a", "b", "c"],
        &["hold"],
        &["release", "a", "b", "c"],
    ] {
        let words = ["pysh"].iter().chain(words).map(Into::into).collect();
        let error = Cli::parse_words(words).expect_err("refused");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}

#[test]
fn lists_and_variables_are_taken_apart() {
    let words = [
        "new",
        "a",
        "--preload",
        "numpy,pandas",
        "--env",
        "A=b=c",
        "--env",
        "B=",
    ];
    let Some(Command::New(args)) = parse(&words).command else {
        panic!()
    };
    assert_eq!(args.preload, ["numpy", "pandas"]);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(args.env, [pair("A", "b=c"), pair("B", "")]);
}

#[test]
fn two_words_are_another_line_if_the_first_is_a_remote() {
    for (line, name, code) in [
        ("gpu work x=1", "gpu/work", &["x=1"][..]),
        ("gpu work @f.py", "gpu/work", &["@f.py"]),
        ("gpu work -", "gpu/work", &["-"]),
        ("--json gpu work 1", "gpu/work", &["1"]),
        ("gpu --json work 1", "gpu/work", &["1"]),
        ("gpu work --json 1", "gpu/work", &["1"]),
        ("gpu work --id gpu 1 --json", "gpu/work", &["1"]),
        ("--json gpu work -- 1 + 1", "gpu/work", &["1", "+", "1"]),
        ("-- gpu work 1 --json", "gpu/work", &["1"]),
        ("gpu work --json --timeout=1 a b", "gpu/work", &["a", "b"]),
    ] {
        let words: Vec<_> = line.split(' ').collect();
        let words = ["pysh", "run"].iter().chain(&words).map(Into::into);
        let mut cli = Cli::parse_words(words.collect()).expect(line);
        let other = cli.if_remote.take().expect(line);
        assert_eq!(other.remote().as_str(), "gpu", "{line}");
        let cli = other.parse().expect(line);
        let Some(Command::Run(args)) = cli.command else {
            panic!("{line}")
        };
        assert_eq!(args.source.name.to_string(), name, "{line}");
        assert_eq!(args.source.code, strings(code), "{line}");
        assert_eq!(cli.json, line.contains("--json"), "{line}");
    }
    for line in [
        "work x = 1",
        "work 1 + 1",
        "work 7 x",
        "work 5f2c00000001 x",
        "gpu/work x y",
        "work x.y z",
        "work x -1 + 2",
    ] {
        let words: Vec<_> = line.split(' ').collect();
        let words = ["pysh", "run"].iter().chain(&words).map(Into::into);
        let cli = Cli::parse_words(words.collect()).expect(line);
        assert!(cli.if_remote.is_none(), "{line}");
    }
}
