//! Clients that may connect.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use pythond_identity::{Fingerprint, IdentityError, TrustVerdict};

use crate::support::{AUTHORITY, Home, RSA_CERTIFICATE, SIGNER, at, certificate, now, replace};

#[test]
fn a_client_is_trusted_until_it_is_not() {
    let home = Home::new();
    let [a, b] = [certificate(), certificate()];
    let store = home.store();
    assert!(!store.trusted_clients().unwrap().are_demanded());
    assert!(store.trust(&a).unwrap());
    assert!(!store.trust(&a).unwrap());
    let trusted = home.store().trusted_clients().unwrap();
    assert!(trusted.are_demanded());
    assert_eq!(trusted.check(&a, now()), TrustVerdict::Trusted);
    assert_eq!(trusted.check(&b, now()), TrustVerdict::Unknown);
    let after = at(a.validity().not_after.as_secs() + 1);
    assert_eq!(trusted.check(&a, after), TrustVerdict::Expired);
    let before = at(a.validity().not_before.as_secs() - 1);
    assert_eq!(trusted.check(&a, before), TrustVerdict::NotYetValid);
    store.trust(&b).unwrap();
    assert_eq!(store.untrust(Fingerprint::Key(a.key())).unwrap().len(), 1);
    let gone = store.untrust(Fingerprint::Certificate(b.fingerprint()));
    assert_eq!(gone.unwrap().len(), 1);
    assert!(!home.store().trusted_clients().unwrap().are_demanded());
}

#[test]
fn the_files_are_those_of_earlier_versions() {
    let home = Home::new();
    let a = certificate();
    home.store().trust(&a).unwrap();
    let fingerprint = a.fingerprint().to_string();
    let digits = fingerprint.replace(':', "");
    let file = home
        .tls("trusted_clients")
        .join(format!("{}.pem", &digits[..16]));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), a.to_pem());
    // Those have a second file beside it, which goes too.
    let beside = home
        .tls("trusted_clients")
        .join(format!("{}.pem.fingerprint", &digits[..16]));
    replace(&beside, format!("{fingerprint}\n").as_bytes());
    assert_eq!(home.store().trusted_clients().unwrap().clients.len(), 1);
    home.store()
        .untrust(Fingerprint::Certificate(a.fingerprint()))
        .unwrap();
    assert!(!file.exists() && !beside.exists());
}

#[test]
fn a_fingerprint_alone_is_a_client_too() {
    let home = Home::new();
    let a = certificate();
    home.store().begin_trusted_clients().unwrap();
    let path = home.tls("trusted_clients").join("laptop");
    replace(&path, format!("{} my laptop\n", a.fingerprint()).as_bytes());
    let trusted = home.store().trusted_clients().unwrap();
    assert_eq!(trusted.check(&a, now()), TrustVerdict::Trusted);
}

/// What stands in the way, and that it is not taken for an empty store.
fn refuses(what: &str, harm: impl Fn(&Path)) {
    let home = Home::new();
    let a = certificate();
    home.store().trust(&a).unwrap();
    let dir = home.tls("trusted_clients");
    harm(&dir);
    let store = home.store();
    for failed in [
        store.trusted_clients().map(|_| ()),
        store.trust(&certificate()).map(|_| ()),
        store.untrust(Fingerprint::Key(a.key())).map(|_| ()),
    ] {
        assert!(failed.is_err(), "{what}");
    }
}

fn only_file(dir: &Path) -> std::path::PathBuf {
    std::fs::read_dir(dir)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
}

#[test]
fn a_store_that_cannot_be_understood_is_never_taken_for_empty() {
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    refuses("a certificate that is cut", |dir| {
        replace(&only_file(dir), b"-----BEGIN")
    });
    refuses("an empty certificate", |dir| replace(&only_file(dir), b""));
    refuses("an authority", |dir| {
        replace(&dir.join("a.pem"), AUTHORITY.as_bytes())
    });
    refuses("one who may sign", |dir| {
        replace(&dir.join("a.pem"), SIGNER.as_bytes())
    });
    refuses("two in one file", |dir| {
        replace(&dir.join("a.pem"), RSA_CERTIFICATE.repeat(2).as_bytes());
    });
    refuses("a file that says nothing", |dir| {
        replace(&dir.join("notes.txt"), b"hello")
    });
    refuses("a certificate under another name", |dir| {
        replace(&dir.join("laptop.crt"), RSA_CERTIFICATE.as_bytes());
    });
    refuses("another certificate's fingerprint beside it", |dir| {
        let name = only_file(dir)
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let other = certificate().fingerprint().to_string();
        replace(&dir.join(format!("{name}.fingerprint")), other.as_bytes());
    });
    refuses("a link", |dir| {
        let kept = dir.parent().unwrap().join("kept");
        std::fs::rename(only_file(dir), &kept).unwrap();
        symlink(&kept, dir.join("a.pem")).unwrap();
    });
    refuses("a link to nothing", |dir| {
        symlink("nowhere", dir.join("a.pem")).unwrap()
    });
    refuses("a second name", |dir| {
        std::fs::hard_link(only_file(dir), dir.parent().unwrap().join("kept")).unwrap();
    });
    refuses("a FIFO", |dir| {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("a.pem"), mode).unwrap();
    });
    refuses("a directory", |dir| {
        std::fs::create_dir(dir.join("old")).unwrap()
    });
    refuses("a file that others may write", |dir| {
        mode(&only_file(dir), 0o622)
    });
    refuses("a directory that others may enter", |dir| mode(dir, 0o750));
    refuses("a file that is too large", |dir| {
        replace(&dir.join("a.pem"), &[b'x'; 70_000])
    });
    refuses("a link in the directory's place", |dir| {
        let kept = dir.parent().unwrap().join("kept");
        std::fs::rename(dir, &kept).unwrap();
        symlink(&kept, dir).unwrap();
    });
}

#[test]
fn what_a_killed_writer_left_is_nobody_and_goes() {
    let home = Home::new();
    home.store().trust(&certificate()).unwrap();
    let left = home.tls("trusted_clients").join(".A.pem.17.0");
    let half_a_key = home.tls(".next-key.pem.17.0");
    for path in [&left, &half_a_key] {
        replace(path, b"-----BEGIN");
    }
    assert_eq!(home.store().trusted_clients().unwrap().clients.len(), 1);
    home.store().trust(&certificate()).unwrap();
    assert!(!left.exists() && !half_a_key.exists());
}

#[test]
fn a_home_that_others_may_write_to_is_refused() {
    let home = Home::new();
    home.store().trust(&certificate()).unwrap();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
    let error = pythond_identity::Store::open(home.path()).unwrap_err();
    assert!(matches!(error, IdentityError::Fs(_)));
    assert!(error.to_string().contains("chmod go-w"), "{error}");
}
