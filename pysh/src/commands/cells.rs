//! `pysh cells NAME`.

use pythond_protocol::ExitCode;

use super::dispatch::connect;
use crate::args::SessionArgs;
use crate::failure::Outcome;
use crate::render::Render;
use crate::text::{CELL_HEAD, cell_row, table};

pub(super) fn cells(args: &SessionArgs, render: &Render) -> Outcome {
    let reply = connect(render)?.cells(&args.name)?.wait()?;
    if render.json {
        render.line(reply.json())?;
        return Ok(ExitCode::Success);
    }
    let mut rows = vec![CELL_HEAD.map(str::to_owned)];
    rows.extend(reply.value.cells.iter().map(cell_row));
    render.raw(table(&rows).as_bytes())?;
    match reply.value.forgotten {
        0 => {}
        1 => render.note("1 older cell is not remembered any more"),
        count => render.note(&format!("{count} older cells are not remembered any more")),
    }
    Ok(ExitCode::Success)
}
