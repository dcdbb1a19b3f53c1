//! What people type and read: every file under `tests/cmd/pysh`.

#[test]
fn command_lines_answer_as_written_down() {
    trycmd::TestCases::new()
        .env("COLUMNS", "100")
        .env("PYTHOND_SOCK", "/nonexistent/pythond.sock")
        .case("../tests/cmd/pysh/*.md");
}
