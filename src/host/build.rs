//! The launcher hands the host library's symbols to nobody and needs `dlopen`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=python");
}
