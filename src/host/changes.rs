//! Which names of a namespace changed, compared by identity.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

/// The names of a namespace at one moment, by identity. Holds the names, not
/// their values: a snapshot must not keep anything alive.
#[derive(Debug)]
pub(crate) struct Names(Vec<(Py<PyAny>, usize)>);

impl Names {
    pub(crate) fn of(globals: &Bound<'_, PyDict>) -> Self {
        Self(
            globals
                .iter()
                .map(|(name, value)| (name.unbind(), value.as_ptr() as usize))
                .collect(),
        )
    }

    /// Names that are new, bound to another object, or gone.
    pub(crate) fn changed(&self, py: Python<'_>, globals: &Bound<'_, PyDict>) -> Vec<String> {
        let now = Self::of(globals);
        let same = now.0.len() == self.0.len()
            && now
                .0
                .iter()
                .zip(&self.0)
                .all(|(new, old)| new.0.is(&old.0) && new.1 == old.1);
        if same {
            return Vec::new();
        }
        let mut before: HashMap<String, usize> = self
            .0
            .iter()
            .map(|(name, value)| (text_of(name.bind(py)), *value))
            .collect();
        let mut changed = Vec::new();
        for (name, value) in &now.0 {
            let name = text_of(name.bind(py));
            if before.remove(&name) != Some(*value) && !name.starts_with("__") {
                changed.push(name);
            }
        }
        let mut gone: Vec<String> = before
            .into_keys()
            .filter(|name| !name.starts_with("__"))
            .collect();
        gone.sort_unstable();
        changed.append(&mut gone);
        changed
    }
}

fn text_of(name: &Bound<'_, PyAny>) -> String {
    name.cast::<PyString>()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Names that do not begin with `_`.
pub(crate) fn count_public(globals: &Bound<'_, PyDict>) -> u64 {
    let names = globals.keys();
    names.iter().filter(|name| is_public(name)).count() as u64
}

fn is_public(name: &Bound<'_, PyAny>) -> bool {
    name.cast::<PyString>()
        .is_ok_and(|name| !name.to_string_lossy().starts_with('_'))
}
