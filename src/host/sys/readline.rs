//! GNU readline as the interpreter's own `readline` module uses it: found in
//! the library that this module is linked to, driven key by key.
//!
//! All of it is the main thread's, which holds the interpreter's lock: readline
//! has one state for the whole process.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

type OnLine = extern "C" fn(*mut c_char);
type OnGetKey = Option<unsafe extern "C" fn(*mut libc::FILE) -> c_int>;

/// What the handlers leave for whoever called into readline.
static TYPED: Mutex<Vec<Typed>> = Mutex::new(Vec::new());
/// The keys that readline reads: it never waits for one.
static KEYS: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());
/// What it reads when it wants another key in the middle of a command: Ctrl-G,
/// which gives the command up.
const GIVE_UP: c_int = 7;
/// Ends the reading of a line; readline's own, for the handler below.
static REMOVE: Mutex<Option<unsafe extern "C" fn()>> = Mutex::new(None);

/// What came of the keys so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// A line, without its end.
    Line(Vec<u8>),
    /// The end of input: Ctrl-D on an empty line.
    End,
    /// The interrupt key, which readline never sees.
    Interrupt,
}

fn note(typed: Typed) {
    TYPED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(typed);
}

/// The functions and variables of the library.
#[derive(Debug)]
pub(crate) struct Readline {
    install: unsafe extern "C" fn(*const c_char, OnLine),
    read_char: unsafe extern "C" fn(),
    remove: unsafe extern "C" fn(),
    redraw: unsafe extern "C" fn() -> c_int,
    resize: unsafe extern "C" fn(),
    measure: unsafe extern "C" fn(),
    add_history: unsafe extern "C" fn(*const c_char),
    bind_variable: unsafe extern "C" fn(*const c_char, *const c_char) -> c_int,
    insert: unsafe extern "C" fn(*const c_char) -> c_int,
    clean_up: unsafe extern "C" fn(),
    free_state: unsafe extern "C" fn(),
    redisplay: unsafe extern "C" fn(),
    /// The line of the cursor, counted from that of the prompt; not documented.
    cursor_line: Option<*mut c_int>,
    /// Only in releases from 7.0 on.
    clear: Option<unsafe extern "C" fn() -> c_int>,
    reset_terminal: unsafe extern "C" fn(*const c_char) -> c_int,
    get_key: *mut OnGetKey,
    end_found: Option<*mut c_int>,
    input: *mut *mut libc::FILE,
    output: *mut *mut libc::FILE,
    catch_signals: *mut c_int,
    catch_resize: *mut c_int,
    /// The terminal as C streams; never closed, the library may keep them.
    streams: (*mut libc::FILE, *mut libc::FILE),
}

// SAFETY: the pointers name things of the whole process; all calls are made by
// the main thread.
unsafe impl Send for Readline {}

extern "C" fn on_line(line: *mut c_char) {
    // Before anything is written by others: the terminal is as it was.
    if let Some(remove) = *REMOVE.lock().unwrap_or_else(PoisonError::into_inner) {
        // SAFETY: readline allows this in its handler, and calls this only
        // from the main thread.
        unsafe { remove() };
    }
    if line.is_null() {
        return note(Typed::End);
    }
    // SAFETY: readline hands over a string that ends with NUL.
    let text = unsafe { CStr::from_ptr(line) }.to_bytes().to_vec();
    // SAFETY: it was allocated by `malloc` and is the handler's to free.
    unsafe { libc::free(line.cast::<c_void>()) };
    note(Typed::Line(text));
}

unsafe extern "C" fn next_key(_stream: *mut libc::FILE) -> c_int {
    let key = KEYS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop_front();
    key.map_or(GIVE_UP, c_int::from)
}

impl Readline {
    /// Finds the library. `module` is the file of Python's `readline` module,
    /// none if it is part of the interpreter. None without GNU readline.
    pub(crate) fn find(module: Option<&CStr>, terminal: &OwnedFd) -> Option<Self> {
        let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD;
        let library = match module {
            // SAFETY: the path ends with NUL; the library is loaded already,
            // and the handle keeps it so for ever.
            Some(path) => unsafe { libc::dlopen(path.as_ptr(), flags) },
            None => libc::RTLD_DEFAULT,
        };
        if library.is_null() && module.is_some() {
            return None;
        }
        let find = |name: &CStr| {
            // SAFETY: the handle is valid and the name ends with NUL.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: GNU readline documents this function with the type of
                // the field that it is put into.
                find($name).map(|found| unsafe { std::mem::transmute(found) })
            };
        }
        let streams = (open_stream(terminal, c"r")?, open_stream(terminal, c"w")?);
        let found = Self {
            install: function!(c"rl_callback_handler_install")?,
            read_char: function!(c"rl_callback_read_char")?,
            remove: function!(c"rl_callback_handler_remove")?,
            redraw: function!(c"rl_forced_update_display")?,
            resize: function!(c"rl_resize_terminal")?,
            measure: function!(c"rl_reset_screen_size")?,
            add_history: function!(c"add_history")?,
            bind_variable: function!(c"rl_variable_bind")?,
            insert: function!(c"rl_insert_text")?,
            clean_up: function!(c"rl_callback_sigcleanup")?,
            free_state: function!(c"rl_free_line_state")?,
            redisplay: function!(c"rl_redisplay")?,
            clear: function!(c"rl_clear_visible_line"),
            reset_terminal: function!(c"rl_reset_terminal")?,
            get_key: find(c"rl_getc_function")?.cast(),
            cursor_line: find(c"_rl_last_v_pos").map(<*mut c_void>::cast),
            end_found: find(c"rl_eof_found").map(<*mut c_void>::cast),
            input: find(c"rl_instream")?.cast(),
            output: find(c"rl_outstream")?.cast(),
            catch_signals: find(c"rl_catch_signals")?.cast(),
            catch_resize: find(c"rl_catch_sigwinch")?.cast(),
            streams,
        };
        *REMOVE.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.remove);
        Some(found)
    }

    /// Once, after the module was imported: as we want it.
    pub(crate) fn set_up(&self, term: Option<&CStr>) {
        self.take_over();
        let on = |name: &CStr, value: &CStr| {
            // SAFETY: both end with NUL and are only read.
            unsafe { (self.bind_variable)(name.as_ptr(), value.as_ptr()) };
        };
        on(c"enable-bracketed-paste", c"on");
        on(c"blink-matching-paren", c"off");
        // It is written to standard error, which is not the person's.
        on(c"bell-style", c"none");
        self.set_terminal(term);
    }

    /// The person's terminal is of another kind now.
    pub(crate) fn set_terminal(&self, term: Option<&CStr>) {
        let term = term.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: a name, or none for that of the environment.
        unsafe { (self.reset_terminal)(term) };
    }

    /// Makes the library use our terminal, whoever used it before.
    fn take_over(&self) {
        // SAFETY: the library's own variables, which only the main thread uses.
        unsafe { *self.input = self.streams.0 };
        // SAFETY: as above.
        unsafe { *self.output = self.streams.1 };
        // SAFETY: as above.
        unsafe { *self.catch_signals = 0 };
        // SAFETY: as above.
        unsafe { *self.catch_resize = 0 };
    }

    /// Shows a prompt and begins to read a line.
    pub(crate) fn begin(&self, prompt: &CStr) {
        self.take_over();
        if let Some(end_found) = self.end_found {
            // SAFETY: the library's own variable, which only this thread uses.
            unsafe { *end_found = 0 };
        }
        // SAFETY: the prompt is copied; the handler has the type asked for.
        unsafe { (self.install)(prompt.as_ptr(), on_line) };
        self.flush();
    }

    /// Gives up the line that is read, and whatever command was under way.
    pub(crate) fn end(&self) {
        // SAFETY: a handler is installed; forgets searches, arguments and prefixes.
        unsafe { (self.clean_up)() };
        // SAFETY: as above.
        unsafe { (self.free_state)() };
        // SAFETY: allowed at any time.
        unsafe { (self.remove)() };
        self.flush();
    }

    /// Takes one whole character; what came of it.
    pub(crate) fn take_key(&self, key: &[u8]) -> Vec<Typed> {
        let keys = || KEYS.lock().unwrap_or_else(PoisonError::into_inner);
        keys().extend(key);
        // SAFETY: the library's own variable; the function never waits.
        let before = unsafe { (*self.get_key).replace(next_key) };
        let typed = || TYPED.lock().unwrap_or_else(PoisonError::into_inner);
        while !keys().is_empty() && typed().is_empty() {
            // SAFETY: a handler is installed; completion may run Python, whose
            // lock the main thread holds.
            unsafe { (self.read_char)() };
        }
        keys().clear();
        // SAFETY: as above. `input` of a cell reads from the terminal itself.
        unsafe { *self.get_key = before };
        self.flush();
        std::mem::take(&mut *typed())
    }

    /// Adds a text to the line, as a paste does.
    pub(crate) fn insert(&self, text: &[u8]) {
        let text: Vec<u8> = text.iter().copied().filter(|byte| *byte != 0).collect();
        let Ok(text) = CString::new(text) else { return };
        // SAFETY: a handler is installed; the text is copied.
        unsafe { (self.insert)(text.as_ptr()) };
        // SAFETY: a handler is installed.
        unsafe { (self.redisplay)() };
        self.flush();
    }

    /// Takes prompt and line off the screen. False if this release cannot.
    pub(crate) fn clear(&self) -> bool {
        let Some(clear) = self.clear else {
            return false;
        };
        // SAFETY: a handler is installed.
        unsafe { clear() };
        self.flush();
        true
    }

    /// What takes prompt and line off a terminal that knows the usual escape
    /// sequences. None if this release does not tell.
    pub(crate) fn clearing(&self) -> Option<Vec<u8>> {
        // SAFETY: the library's own variable, which only this thread uses.
        let lines = unsafe { *self.cursor_line? };
        Some(match lines {
            ..=0 => b"\r\x1b[J".to_vec(),
            lines => format!("\r\x1b[{lines}A\x1b[J").into_bytes(),
        })
    }

    /// Shows prompt and line again, on a fresh line.
    pub(crate) fn redraw(&self) {
        // SAFETY: a handler is installed.
        unsafe { (self.redraw)() };
        self.flush();
    }

    /// The terminal has another size, and prompt and line are not on it.
    pub(crate) fn measure(&self) {
        // SAFETY: asks the terminal, and draws nothing.
        unsafe { (self.measure)() };
    }

    /// The terminal has another size.
    pub(crate) fn resize(&self) {
        // SAFETY: asks the terminal and redraws.
        unsafe { (self.resize)() };
        self.flush();
    }

    /// Remembers a line for the arrow keys and the search.
    pub(crate) fn remember(&self, line: &[u8]) {
        if let Ok(line) = CString::new(line) {
            // SAFETY: the line is copied.
            unsafe { (self.add_history)(line.as_ptr()) };
        }
    }

    fn flush(&self) {
        // SAFETY: the stream stays open for ever.
        unsafe { libc::fflush(self.streams.1) };
    }
}

/// A C stream over the number of the terminal itself, so that a descriptor put
/// back under that number serves it too.
fn open_stream(terminal: &OwnedFd, mode: &CStr) -> Option<*mut libc::FILE> {
    // SAFETY: the descriptor is open; the stream is never closed, so it does
    // not take the descriptor away.
    let stream = unsafe { libc::fdopen(terminal.as_raw_fd(), mode.as_ptr()) };
    (!stream.is_null()).then_some(stream)
}
