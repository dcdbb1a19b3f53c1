//! What agents' cells look like on the person's terminal.

/// Lines of a cell's source that are shown.
const MOST_LINES: usize = 20;
/// Characters of a line that are shown.
const MOST_COLUMNS: usize = 500;

/// The source of an agent's cell with its label.
pub(crate) fn label(kind: &str, source: &str) -> String {
    let mut text = String::new();
    let lines: Vec<&str> = source.trim_end().lines().collect();
    let further = " ".repeat(kind.len());
    for (number, line) in lines.iter().take(MOST_LINES).enumerate() {
        let line: String = line.chars().take(MOST_COLUMNS).collect();
        let word = if number == 0 { kind } else { &further };
        text.push_str(&format!("[ai] {word}: "));
        text.push_str(&String::from_utf8_lossy(&visible_line(line.as_bytes())));
        text.push('\n');
    }
    if lines.len() > MOST_LINES {
        let more = lines.len() - MOST_LINES;
        text.push_str(&format!("[ai] {further}: ... {more} more lines\n"));
    }
    text
}

fn visible_line(line: &[u8]) -> Vec<u8> {
    let mut shown = visible(line);
    shown.retain(|byte| !matches!(byte, b'\n' | b'\r'));
    shown
}

/// Output of a cell as it may stand above a prompt: colours stay, what would
/// move the cursor or change the terminal is made visible.
pub(crate) fn visible(bytes: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(length) = hidden_length(rest) {
            let hidden = String::from_utf8_lossy(&rest[..length]);
            for character in hidden.chars() {
                shown.extend(character.escape_unicode().to_string().bytes());
            }
            rest = &rest[length..];
            continue;
        }
        rest = after;
        match byte {
            b'\n' | b'\t' | b'\r' | 0x20..=0x7e | 0x80.. => shown.push(byte),
            0x1b => match colour_length(after) {
                Some(length) => {
                    shown.push(byte);
                    shown.extend_from_slice(&after[..length]);
                    rest = &after[length..];
                }
                None => shown.extend_from_slice(b"^["),
            },
            0x7f => shown.extend_from_slice(b"^?"),
            _ => shown.extend_from_slice(&[b'^', byte | 0x40]),
        }
    }
    shown
}

/// Length of a character that is no text: C1 controls, and those that turn the
/// direction of what follows.
fn hidden_length(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [0xc2, 0x80..=0x9f, ..] => Some(2),
        [0xe2, 0x80, 0xaa..=0xae, ..] | [0xe2, 0x81, 0xa6..=0xa9, ..] => Some(3),
        _ => None,
    }
}

/// How many bytes at the end may be the beginning of a change of colour.
pub(crate) fn torn(bytes: &[u8]) -> usize {
    const LONGEST: usize = 32;
    let tail = &bytes[bytes.len().saturating_sub(LONGEST)..];
    let Some(at) = tail.iter().rposition(|byte| *byte == 0x1b) else {
        return 0;
    };
    let rest = &tail[at + 1..];
    let open = match rest.split_first() {
        None => true,
        Some((b'[', parameters)) => parameters
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b';' | b':')),
        Some(_) => false,
    };
    if open { tail.len() - at } else { 0 }
}

/// True if the last line is not ended; changes of colour after its end do not
/// count.
pub(crate) fn is_open(mut bytes: &[u8]) -> bool {
    while let Some(start) = bytes.iter().rposition(|byte| *byte == 0x1b) {
        let after = &bytes[start + 1..];
        if colour_length(after) != Some(after.len()) {
            break;
        }
        bytes = &bytes[..start];
    }
    bytes.last().is_some_and(|last| *last != b'\n')
}

/// Length of `[…m` after an escape character: a change of colour and nothing
/// else.
fn colour_length(after: &[u8]) -> Option<usize> {
    let parameters = after.strip_prefix(b"[")?;
    let length = parameters
        .iter()
        .position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':'))?;
    (parameters[length] == b'm').then_some(length + 2)
}
