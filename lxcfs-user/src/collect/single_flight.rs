//! One answer for everybody who asks at the same moment: rendered once, kept for a few
//! milliseconds. Whoever waits for another's answer waits at most for a bound and then
//! takes an older one, or makes his own.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::store::lock;

/// The newest answer of one file.
#[derive(Debug, Default)]
struct Cell {
    state: Mutex<Answer>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct Answer {
    bytes: Option<(Arc<[u8]>, Instant)>,
    in_flight: bool,
    /// Readers that wait for the one in flight.
    waiting: u32,
}

/// The answers of one container, by file.
#[derive(Debug, Default)]
pub struct Cells(Mutex<Vec<(u8, Arc<Cell>)>>);

/// Bytes of answers kept for all containers together. An answer is shared for a few
/// milliseconds; this is far more than is rendered meanwhile.
const MAX_KEPT: usize = 512 << 10;

/// The answers of all containers in the order of their making, so that a thousand
/// containers that each read once do not leave a thousand texts behind.
#[derive(Debug, Default)]
pub struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    answers: VecDeque<(Weak<Cell>, Instant, usize)>,
    bytes: usize,
}

impl Recent {
    /// Notes an answer and lets go of the oldest ones beyond [`MAX_KEPT`].
    fn keep(&self, cell: &Arc<Cell>, at: Instant, size: usize) {
        let mut kept = lock(&self.0);
        kept.answers.push_back((Arc::downgrade(cell), at, size));
        kept.bytes += size;
        while kept.bytes > MAX_KEPT
            && let Some((cell, at, size)) = kept.answers.pop_front()
        {
            kept.bytes -= size;
            if let Some(cell) = cell.upgrade() {
                // A newer answer has its own place in the row.
                lock(&cell.state).bytes.take_if(|(_, made)| *made == at);
            }
        }
    }
}

impl Recent {
    /// Lets go of the answers that are at least this old; whether there were any.
    pub(super) fn expire(&self, age: Duration) -> bool {
        let mut kept = lock(&self.0);
        let before = kept.answers.len();
        while let Some(&(_, at, size)) = kept.answers.front()
            && at.elapsed() >= age
        {
            kept.answers.pop_front();
            kept.bytes -= size;
        }
        kept.answers.len() < before
    }
}

/// How an answer was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Rendered now, or within the time it may be shared.
    Fresh,
    /// An older one, because the newer took too long.
    Stale,
}

/// Ends a flight, also when rendering panics.
struct Flight<'a> {
    cell: &'a Arc<Cell>,
    recent: &'a Recent,
    landed: Option<Arc<[u8]>>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut answer = lock(&self.cell.state);
        answer.in_flight = false;
        let landed = self.landed.take().map(|bytes| {
            let (at, size) = (Instant::now(), bytes.len());
            answer.bytes = Some((bytes, at));
            (at, size)
        });
        let waiting = answer.waiting > 0;
        drop(answer);
        // A system call, also when nobody waits.
        if waiting {
            self.cell.ready.notify_all();
        }
        if let Some((at, size)) = landed {
            self.recent.keep(self.cell, at, size);
        }
    }
}

impl Cells {
    fn cell(&self, file: u8) -> Arc<Cell> {
        let mut cells = lock(&self.0);
        if let Some((_, cell)) = cells.iter().find(|(known, _)| *known == file) {
            return cell.clone();
        }
        let cell = Arc::new(Cell::default());
        cells.push((file, cell.clone()));
        cell
    }

    /// Appends the answer for `file` to `out`: one not older than `ttl`, else what
    /// `render` writes. Another's rendering is waited for until `patience` is over.
    ///
    /// # Errors
    /// What `render` returns; the error is not shared.
    pub fn answer<E>(
        &self,
        file: u8,
        ttl: Duration,
        patience: Duration,
        recent: &Recent,
        out: &mut Vec<u8>,
        render: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Came, E> {
        let cell = self.cell(file);
        let mut answer = lock(&cell.state);
        let mut deadline = None;
        loop {
            if let Some((bytes, at)) = &answer.bytes
                && at.elapsed() <= ttl
            {
                out.extend_from_slice(bytes);
                return Ok(Came::Fresh);
            }
            if !answer.in_flight {
                break;
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + patience);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if let Some((bytes, _)) = &answer.bytes {
                    out.extend_from_slice(bytes);
                    return Ok(Came::Stale);
                }
                // Nothing older: make one's own, for oneself alone.
                drop(answer);
                return render(out).map(|()| Came::Fresh);
            }
            answer.waiting += 1;
            answer = cell
                .ready
                .wait_timeout(answer, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            answer.waiting -= 1;
        }
        answer.in_flight = true;
        drop(answer);
        let mut flight = Flight {
            cell: &cell,
            recent,
            landed: None,
        };
        let start = out.len();
        render(out)?;
        flight.landed = Some(out[start..].into());
        Ok(Came::Fresh)
    }

    /// The last answer for `file`, however old.
    #[must_use]
    pub fn last(&self, file: u8) -> Option<Arc<[u8]>> {
        let cell = self.cell(file);
        let answer = lock(&cell.state);
        answer.bytes.as_ref().map(|(bytes, _)| bytes.clone())
    }

    /// Lets go of every answer: it was made by another rule.
    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Lets go of the answers that are at least this old.
    pub fn drop_stale(&self, age: Duration) {
        lock(&self.0).retain(|(_, cell)| {
            let answer = lock(&cell.state);
            answer.in_flight
                || answer
                    .bytes
                    .as_ref()
                    .is_some_and(|(_, at)| at.elapsed() < age)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(600);
    const NONE: Duration = Duration::ZERO;

    fn ask(cells: &Cells, ttl: Duration, patience: Duration, text: &str) -> (Came, String) {
        let mut out = Vec::new();
        let came = cells
            .answer(0, ttl, patience, &Recent::default(), &mut out, |out| {
                out.extend_from_slice(text.as_bytes());
                Ok::<_, Infallible>(())
            })
            .unwrap();
        (came, String::from_utf8(out).unwrap())
    }

    #[test]
    fn readers_of_one_moment_share_one_rendering() {
        let cells = Cells::default();
        let rendered = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let mut out = b"before ".to_vec();
                    let came = cells.answer(0, LONG, LONG, &Recent::default(), &mut out, |out| {
                        rendered.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                        out.extend_from_slice(b"text");
                        Ok::<_, Infallible>(())
                    });
                    assert_eq!(came, Ok(Came::Fresh));
                    assert_eq!(out, b"before text");
                });
            }
        });
        assert_eq!(rendered.into_inner(), 1);
    }

    #[test]
    fn an_answer_is_not_shared_beyond_its_time() {
        let cells = Cells::default();
        assert_eq!(ask(&cells, LONG, LONG, "one").1, "one");
        assert_eq!(ask(&cells, LONG, LONG, "two").1, "one");
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(ask(&cells, NONE, LONG, "three").1, "three");
    }

    #[test]
    fn a_rendering_that_hangs_costs_the_others_an_older_answer_only() {
        let cells = Cells::default();
        ask(&cells, NONE, NONE, "old");
        std::thread::sleep(Duration::from_millis(2));
        let (started, wait_started) = mpsc::channel();
        let (release, wait_release) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let cells = &cells;
            scope.spawn(move || {
                let mut out = Vec::new();
                let _ = cells.answer(0, NONE, NONE, &Recent::default(), &mut out, |_| {
                    started.send(()).unwrap();
                    wait_release.recv().unwrap();
                    Ok::<_, Infallible>(())
                });
            });
            wait_started.recv().unwrap();
            assert_eq!(ask(cells, NONE, NONE, "mine"), (Came::Stale, "old".into()));
            // Another file is not held up at all.
            let mut out = Vec::new();
            let came = cells.answer(1, NONE, NONE, &Recent::default(), &mut out, |_| {
                Ok::<_, Infallible>(())
            });
            assert_eq!(came, Ok(Came::Fresh));
            release.send(()).unwrap();
        });
    }

    #[test]
    fn an_error_or_a_panic_leaves_the_file_answerable() {
        let cells = Cells::default();
        let mut out = Vec::new();
        assert_eq!(
            cells.answer(0, LONG, LONG, &Recent::default(), &mut out, |_| Err(7)),
            Err(7)
        );
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut out = Vec::new();
            let _ = cells.answer(
                0,
                LONG,
                LONG,
                &Recent::default(),
                &mut out,
                |_| -> Result<(), ()> { panic!("rendering failed") },
            );
        }));
        assert!(panicked.is_err());
        assert_eq!(ask(&cells, LONG, LONG, "fine").1, "fine");
        assert_eq!(cells.last(0).as_deref(), Some(b"fine".as_slice()));
    }

    #[test]
    fn the_answers_kept_are_bounded_over_all_containers() {
        let recent = Recent::default();
        let containers: Vec<Cells> = (0..100).map(|_| Cells::default()).collect();
        let text = vec![b'x'; MAX_KEPT / 10];
        for cells in &containers {
            let mut out = Vec::new();
            let came = cells.answer(0, LONG, LONG, &recent, &mut out, |out| {
                out.extend_from_slice(&text);
                Ok::<_, Infallible>(())
            });
            assert_eq!(came, Ok(Came::Fresh));
            assert_eq!(out.len(), text.len());
        }
        let kept = containers.iter().filter(|cells| cells.last(0).is_some());
        assert_eq!(kept.count(), 10);
        assert!(containers[99].last(0).is_some(), "the newest stays");
        assert!(!recent.expire(LONG), "none is that old");
        assert!(recent.expire(NONE));
        assert!(!recent.expire(NONE), "none is left");
        containers[99].drop_stale(LONG);
        assert!(containers[99].last(0).is_some());
        containers[99].drop_stale(NONE);
        assert!(containers[99].last(0).is_none());
    }
}
