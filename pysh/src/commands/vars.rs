//! `pysh vars NAME`.

use pythond_protocol::ExitCode;

use super::dispatch::connect;
use crate::args::SessionArgs;
use crate::failure::Outcome;
use crate::render::Render;

pub(super) fn vars(args: &SessionArgs, render: &Render) -> Outcome {
    let reply = connect(render)?.vars(&args.name)?;
    if render.json {
        render.line(reply.json())?;
    } else {
        let names: Vec<_> = reply
            .value
            .vars
            .into_iter()
            .map(|variable| variable.name)
            .collect();
        render.line(&object_of_names("vars", &names))?;
    }
    Ok(ExitCode::Success)
}

/// `{"vars": ["a", "b"]}`: one field, with the spaces that the plain wire has.
pub(super) fn object_of_names(field: &str, names: &[String]) -> String {
    let quoted: Vec<_> = names
        .iter()
        .map(|name| serde_json::Value::from(name.as_str()).to_string())
        .collect();
    format!("{{\"{field}\": [{}]}}", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_json_with_the_spaces_of_the_plain_wire() {
        assert_eq!(object_of_names("vars", &[]), r#"{"vars": []}"#);
        let names = ["a".to_owned(), "é\"\n".to_owned()];
        assert_eq!(
            object_of_names("matches", &names),
            r#"{"matches": ["a", "é\"\n"]}"#
        );
    }
}
