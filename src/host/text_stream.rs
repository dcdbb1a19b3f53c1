//! The text end of a standard stream: a real `io.TextIOWrapper`, whose `write`
//! takes a short way past its buffers.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyString, PyTuple};
use pythond_protocol::output_log::Stream;

use crate::helpers;
use crate::streams::Sink;

/// What [`ShortWay`] puts before the methods of the wrapper.
const METHODS: [&str; 3] = ["write", "reconfigure", "detach"];

/// A standard stream as cells find it.
#[derive(Debug)]
pub(crate) struct TextStream {
    wrapper: Py<PyAny>,
    /// Its attributes as they were made.
    attributes: Py<PyDict>,
}

impl TextStream {
    /// Makes one; every write reaches its [`Sink`] at once.
    pub(crate) fn new(py: Python<'_>, stream: Stream) -> PyResult<Self> {
        let class = &helpers::get(py).text_io;
        let sink = Bound::new(py, Sink::new(stream))?;
        let options = PyDict::new(py);
        options.set_item("encoding", "utf-8")?;
        options.set_item("errors", "backslashreplace")?;
        options.set_item("newline", "\n")?;
        options.set_item("write_through", true)?;
        let wrapper = class.bind(py).call((&sink,), Some(&options))?;
        let way = ShortWay {
            sink: sink.unbind(),
            wrapper: pyo3::types::PyWeakrefReference::new(&wrapper)?
                .into_any()
                .unbind(),
            open: AtomicBool::new(true),
        };
        let way = Bound::new(py, way)?;
        wrapper.setattr("mode", "w")?;
        for name in METHODS {
            wrapper.setattr(name, way.getattr(name)?)?;
        }
        let attributes = wrapper.getattr("__dict__")?.cast_into::<PyDict>()?.copy()?;
        Ok(Self {
            wrapper: wrapper.unbind(),
            attributes: attributes.unbind(),
        })
    }

    /// The stream itself.
    pub(crate) fn get(&self) -> &Py<PyAny> {
        &self.wrapper
    }

    /// Makes it anew if a cell closed, detached or patched it.
    pub(crate) fn repair(&mut self, py: Python<'_>, stream: Stream) -> PyResult<()> {
        if !self.is_usable(py).unwrap_or(false) {
            *self = Self::new(py, stream)?;
        }
        Ok(())
    }

    fn is_usable(&self, py: Python<'_>) -> PyResult<bool> {
        let wrapper = self.wrapper.bind(py);
        let names = &helpers::get(py).names;
        let current = wrapper.getattr(&names.dict)?;
        let current = current.cast_into::<PyDict>()?;
        let made = self.attributes.bind(py);
        let same = current.len() == made.len()
            && made.iter().all(|(name, value)| {
                matches!(current.get_item(name), Ok(Some(current)) if current.is(&value))
            });
        Ok(same && !wrapper.getattr(&names.closed)?.is_truthy()?)
    }
}

/// Methods that stand before those of one wrapper, as its own attributes.
///
/// As long as nobody changes how the wrapper encodes, what a text becomes is
/// known without it: its UTF-8. It has no frame of its own in a traceback and
/// the wrapper's name in its `repr`.
#[pyclass(module = "_io", name = "TextIOWrapper", frozen)]
#[derive(Debug)]
pub(crate) struct ShortWay {
    sink: Py<Sink>,
    /// Weak: the wrapper's attributes hold this.
    wrapper: Py<PyAny>,
    open: AtomicBool,
}

impl ShortWay {
    /// Writes bytes as `write` does a text.
    pub(crate) fn put(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        self.sink.get().put(py, bytes)
    }

    /// True if a stream has the class of those that this stands before.
    pub(crate) fn is_class_of(stream: &Bound<'_, PyAny>) -> bool {
        stream.get_type().is(&helpers::get(stream.py()).text_io)
    }

    /// What a method of a stream belongs to, if that is a short way and open.
    pub(crate) fn of_method<'py>(method: &Bound<'py, PyAny>) -> Option<Bound<'py, Self>> {
        let method = method.cast_exact::<PyCFunction>().ok()?;
        let way = method.getattr(&helpers::get(method.py()).names.owner);
        let way = way.ok()?.cast_into_exact::<Self>().ok()?;
        way.get().open.load(Relaxed).then_some(way)
    }

    /// Calls the method that the wrapper has from its class.
    fn long_way<'py>(
        &self,
        py: Python<'py>,
        method: &str,
        arguments: &Bound<'py, PyTuple>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let wrapper = self.wrapper.bind(py).call0()?;
        if wrapper.is_none() {
            return Err(PyValueError::new_err("I/O operation on closed file."));
        }
        let method = wrapper.get_type().getattr(method)?;
        let arguments = std::iter::once(wrapper).chain(arguments.iter());
        let arguments = PyTuple::new(py, arguments.collect::<Vec<_>>())?;
        method.call(arguments, options)
    }
}

#[pymethods]
impl ShortWay {
    #[pyo3(signature = (text, /))]
    fn write<'py>(&self, text: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = text.py();
        if self.open.load(Relaxed)
            && let Ok(exact) = text.cast_exact::<PyString>()
            // Lone surrogates take the long way.
            && let Ok(bytes) = exact.encode_utf8()
        {
            self.put(py, bytes.as_bytes())?;
            return Ok(exact.len()?.into_pyobject(py)?.into_any());
        }
        self.long_way(py, "write", &PyTuple::new(py, [text])?, None)
    }

    #[pyo3(signature = (*arguments, **options))]
    fn reconfigure<'py>(
        &self,
        arguments: &Bound<'py, PyTuple>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.open.store(false, Relaxed);
        self.long_way(arguments.py(), "reconfigure", arguments, options)
    }

    fn detach<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.open.store(false, Relaxed);
        self.long_way(py, "detach", &PyTuple::empty(py), None)
    }
}
