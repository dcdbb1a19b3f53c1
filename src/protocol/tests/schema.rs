//! `schema.json` is what the types give.

use std::path::Path;

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a file of the repository, written where a person asks for it"
)]
fn the_schema_that_is_checked_in_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema.json");
    let document = pythond_protocol::schema::document();
    let given = format!("{:#}\n", document);
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &given).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == given,
        "`{}` is not what the types give; write it anew with\n\n    \
         UPDATE_SCHEMA=1 cargo test -p pythond-protocol --test schema\n",
        path.display()
    );
}
