//! `print` of a session: one write for a line where CPython makes two or more,
//! each of which would have to look at the descriptors first.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyInt, PyString, PyTuple};

use crate::helpers;
use crate::text_stream::ShortWay;

/// Longest line that is put together before it is written.
const LONGEST: usize = 64 << 10;

/// Puts [`print()`] in the place of CPython's.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    let helpers = helpers::get(py);
    let module = py.import("builtins")?;
    let function = pyo3::wrap_pyfunction!(print, &module)?;
    for builtins in [&helpers.live_builtins, &helpers.builtins] {
        builtins.bind(py).set_item("print", &function)?;
    }
    Ok(())
}

/// Prints the values to a stream, or to sys.stdout by default.
///
///   sep
///     string inserted between values, default a space.
///   end
///     string appended after the last value, default a newline.
///   file
///     a file-like object (stream); defaults to the current sys.stdout.
///   flush
///     whether to forcibly flush the stream.
#[pyfunction]
#[pyo3(
    signature = (*args, **options),
    text_signature = "(*args, sep=' ', end='\\n', file=None, flush=False)"
)]
fn print<'py>(
    args: &Bound<'py, PyTuple>,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = args.py();
    if options.is_none()
        && let Some(way) = short_way(py)
        && let Some(line) = line(args)
    {
        way.get().put(py, &line)?;
        return Ok(py.None().into_bound(py));
    }
    helpers::get(py).print.bind(py).call(args, options)
}

/// The way to the output, if nobody stands in it.
fn short_way(py: Python<'_>) -> Option<Bound<'_, ShortWay>> {
    let helpers = helpers::get(py);
    let stdout = helpers.sys.bind(py).getattr(&helpers.names.stdout).ok()?;
    // Foreign streams have attributes that may do anything, once.
    if !ShortWay::is_class_of(&stdout) {
        return None;
    }
    let write = stdout.getattr(&helpers.names.write).ok()?;
    ShortWay::of_method(&write)
}

/// What CPython would write, if that is known without running code of others
/// and is neither long nor text that UTF-8 has no form for.
fn line(values: &Bound<'_, PyTuple>) -> Option<Vec<u8>> {
    let mut line = Vec::with_capacity(128);
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            line.push(b' ');
        }
        let text = match value.cast_exact::<PyString>() {
            Ok(text) if text.len().ok()? > LONGEST => return None,
            Ok(text) => text.clone(),
            Err(_) if value.is_exact_instance_of::<PyInt>() => value.str().ok()?,
            Err(_) if value.is_exact_instance_of::<PyFloat>() => value.str().ok()?,
            Err(_) => return None,
        };
        line.extend_from_slice(text.encode_utf8().ok()?.as_bytes());
        if line.len() > LONGEST {
            return None;
        }
    }
    line.push(b'\n');
    Some(line)
}
