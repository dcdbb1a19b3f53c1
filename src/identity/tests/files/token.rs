//! The token: made once, kept, never shown by accident.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use pythond_identity::{IdentityError, Token, TokenError};

use crate::support::{Home, replace};

#[test]
fn a_token_is_made_once_and_kept_until_it_is_rotated() {
    let home = Home::new();
    assert!(home.store().token().unwrap().is_none());
    let made = home.store().token_or_make().unwrap();
    assert_eq!(made.reveal().len(), 64);
    assert!(made.reveal().bytes().all(|byte| byte.is_ascii_hexdigit()));
    let again = home.store().token_or_make().unwrap();
    assert_eq!(made.reveal(), again.reveal());
    let path = home.store().token_path();
    assert_eq!(path, home.path().join(".pythond/daemon.json"));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let new = home.store().rotate_token().unwrap();
    assert!(!new.matches(made.reveal().as_bytes()));
    assert!(new.matches(home.store().token().unwrap().unwrap().reveal().as_bytes()));
}

#[test]
fn only_the_whole_token_matches() {
    let token = Home::new().store().token_or_make().unwrap();
    let text = token.reveal().to_owned();
    assert!(token.matches(text.as_bytes()));
    for wrong in [
        "",
        &text[1..],
        &text[..63],
        &format!("{text}0"),
        &text.to_uppercase(),
    ] {
        assert!(!token.matches(wrong.as_bytes()), "{wrong}");
    }
    assert!(!format!("{token:?} {:?}", Some(&token)).contains(&text));
}

#[test]
fn what_earlier_versions_wrote_is_read_and_kept() {
    let home = Home::new();
    home.store();
    let path = home.store().token_path();
    let old = "0123456789abcdef0123456789abcdef";
    replace(
        &path,
        format!(r#"{{"port": 7984, "token": "{old}", "pid": 1}}"#).as_bytes(),
    );
    assert_eq!(home.store().token().unwrap().unwrap().reveal(), old);
    home.store().rotate_token().unwrap();
    let object: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(object["port"], 7984);
    assert_eq!(object["token"].as_str().unwrap().len(), 64);
}

#[test]
fn a_damaged_file_is_an_error_and_is_not_replaced() {
    let home = Home::new();
    home.store();
    let path = home.store().token_path();
    for (content, wrong) in [
        (&b""[..], TokenError::NotJson),
        (b"[]", TokenError::NotJson),
        (b"{", TokenError::NotJson),
        (b"\xff", TokenError::NotJson),
        (b"{}", TokenError::Missing),
        (br#"{"token": 7}"#, TokenError::Missing),
        (br#"{"token": "short"}"#, TokenError::Short),
        (
            br#"{"token": "has a space and is long enough otherwise"}"#,
            TokenError::Characters,
        ),
    ] {
        replace(&path, content);
        for error in [
            home.store().token().unwrap_err(),
            home.store().token_or_make().unwrap_err(),
        ] {
            assert!(
                matches!(&error, IdentityError::Token { reason, .. } if *reason == wrong),
                "{error:?}"
            );
            assert!(error.hint().unwrap().contains("pyctl token rotate"));
        }
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    home.store().rotate_token().unwrap();
    home.store().token().unwrap().unwrap();
}

#[test]
fn a_file_that_others_can_read_or_that_is_a_link_is_refused() {
    let home = Home::new();
    home.store().token_or_make().unwrap();
    let path = home.store().token_path();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(home.store().token(), Err(IdentityError::Fs(_))));
    home.store().rotate_token().unwrap();
    home.store().token().unwrap().unwrap();
    let victim = home.path().join("victim");
    std::fs::rename(&path, &victim).unwrap();
    symlink(&victim, &path).unwrap();
    let before = std::fs::read(&victim).unwrap();
    assert!(matches!(home.store().token(), Err(IdentityError::Fs(_))));
    assert!(matches!(
        home.store().rotate_token(),
        Err(IdentityError::Fs(_))
    ));
    assert_eq!(std::fs::read(&victim).unwrap(), before);
}

#[test]
fn a_token_from_elsewhere_is_checked() {
    assert!(matches!(Token::new("x"), Err(TokenError::Short)));
    assert!(matches!(
        Token::new(&"x".repeat(2000)),
        Err(TokenError::Characters)
    ));
    assert!(matches!(
        Token::new(&format!("{}\n", "x".repeat(40))),
        Err(TokenError::Characters)
    ));
    Token::new(&"x".repeat(32)).unwrap();
}
