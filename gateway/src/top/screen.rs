//! The terminal while the fleet is watched: another screen than the one with the commands before, which is there again
//! afterwards, however that comes.

use std::io::{self, Write};
use std::time::Instant;

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use crossterm::style::Print;
use crossterm::terminal::{
    self, BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
};
use crossterm::{execute, queue};

use super::render::Size;

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// It is time.
    Due,
    /// The window has another size now.
    Resized,
    /// The user has seen enough.
    Quit,
}

/// The terminal, as long as it is ours.
pub struct Screen(());

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// When it is none.
    pub fn enter() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        // From here on whatever fails gives it back.
        let screen = Self(());
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(screen)
    }

    /// How large it is now.
    ///
    /// # Errors
    /// When it is gone.
    pub fn size(&self) -> io::Result<Size> {
        let (columns, rows) = terminal::size()?;
        Ok(Size { columns: columns.into(), rows: rows.into() })
    }

    /// Shows these lines, which fit, in place of the ones before.
    ///
    /// # Errors
    /// When it is gone.
    pub fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        queue!(out, BeginSynchronizedUpdate)?;
        for (row, line) in (0..).zip(lines) {
            queue!(out, MoveTo(0, row), Clear(ClearType::CurrentLine), Print(line))?;
        }
        if let Ok(below) = u16::try_from(lines.len())
            && terminal::size()?.1 > below
        {
            queue!(out, MoveTo(0, below), Clear(ClearType::FromCursorDown))?;
        }
        queue!(out, EndSynchronizedUpdate)?;
        out.flush()
    }

    /// Waits until then, or until there is something to do.
    ///
    /// # Errors
    /// When it is gone.
    pub fn wait(&mut self, until: Instant) -> io::Result<Woken> {
        while event::poll(until.saturating_duration_since(Instant::now()))? {
            match event::read()? {
                Event::Resize(..) => return Ok(Woken::Resized),
                Event::Key(key) if quits(key) => return Ok(Woken::Quit),
                _ => {}
            }
        }
        Ok(Woken::Due)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone has nothing to be restored.
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

fn quits(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        // The terminal makes no signal of it while it is ours.
        KeyCode::Char('c' | 'd') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}
