use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncWriteExt as _;
use vaultferry_vault::meter::Meter;

use super::*;

fn shell(script: &str) -> Command {
    Command::new("/bin/sh").arg("-c").arg(script)
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses; a zombie is not alive.
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

async fn wait_until_gone(pid: u32) {
    let begin = Instant::now();
    while is_alive(pid) {
        assert!(begin.elapsed() < Duration::from_secs(5), "{pid} is still alive");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn status_and_last_words_are_told() {
    let child = shell("echo first >&2; echo last >&2; exit 3").spawn().await.unwrap();
    let ended = child.finish(&CancellationToken::new()).await.unwrap();
    assert_eq!((ended.how().as_str(), ended.words.as_str()), ("exit status 3", "first\nlast"));
    let ended = shell("kill -9 $$").spawn().await.unwrap().finish(&CancellationToken::new()).await.unwrap();
    assert_eq!(ended.how(), "signal 9 (SIGKILL)");
}

#[tokio::test]
async fn words_are_bounded_and_lossy() {
    let script = "head -c 100000 /dev/zero | tr '\\0' x >&2; printf '\\377end' >&2";
    let ended = shell(script).spawn().await.unwrap().finish(&CancellationToken::new()).await.unwrap();
    assert!(ended.words.ends_with("x\u{fffd}end") && ended.words.len() <= WORDS_MAX + 2, "{}", ended.words.len());
}

/// What is said first names the fault; the query that follows may be longer than all that is kept.
#[tokio::test]
async fn the_first_words_are_kept_before_a_long_query() {
    let script = "echo 'error: out of memory' >&2; for i in 1 2 3; do head -c 9000 /dev/zero | tr '\\0' x >&2; done; echo end >&2";
    let ended = shell(script).spawn().await.unwrap().finish(&CancellationToken::new()).await.unwrap();
    assert!(ended.words.starts_with("error: out of memory\nxxx") && ended.words.ends_with("xxxend"), "{}", ended.words);
    assert!(ended.words.contains("x\n…\nx") && ended.words.len() <= WORDS_MAX, "{}", ended.words.len());
    let ended = shell("head -c 6000 /dev/zero | tr '\\0' x >&2").spawn().await.unwrap();
    let words = ended.finish(&CancellationToken::new()).await.unwrap().words;
    assert_eq!(words, "x".repeat(6000));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let error = Command::new("/nowhere/program").spawn().await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/program"), "{error}");
}

#[tokio::test]
async fn pipes_carry_bytes_and_the_environment_is_clean() {
    let command = shell("cat; env").envs([("GIVEN", OsString::from("yes"))]).pipe_stdin().pipe_stdout();
    let mut child = command.spawn().await.unwrap();
    let mut stdin = child.take_stdin().unwrap();
    let mut stdout = child.take_stdout().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    drop(stdin);
    let mut output = String::new();
    stdout.read_to_string(&mut output).await.unwrap();
    assert!(child.finish(&CancellationToken::new()).await.unwrap().success());
    assert!(output.starts_with("hello\n") && output.contains("GIVEN=yes\n"), "{output}");
    assert!(!output.contains("CARGO_"), "{output}");
}

#[tokio::test]
async fn output_that_comes_in_bursts_is_read_whole() {
    let script = "for i in 1 2 3; do head -c 30000000 /dev/zero; printf x; sleep 0.05; printf y; done; printf end";
    // As it is read when the vault has all of it, and when it has none.
    for known in [true, false] {
        let mut child = shell(script).pipe_stdout().spawn().await.unwrap();
        let mut stdout = child.take_stdout().unwrap();
        let meter = Arc::new(Meter::default());
        stdout.follow(&meter);
        let mut output = Vec::new();
        while let count @ 1.. = stdout.read_buf(&mut output).await.unwrap() {
            meter.add_read(count as u64);
            meter.add_new(if known { 0 } else { count as u64 });
        }
        assert!(child.finish(&CancellationToken::new()).await.unwrap().success());
        assert_eq!(output.len(), 3 * 30_000_002 + 3);
        output.retain(|byte| *byte != 0);
        assert_eq!(output, b"xyxyxyend");
    }
}

/// With a limit the child is held up, whatever asks for its output.
#[tokio::test]
async fn a_limit_holds_the_child_up() {
    const RATE: u64 = 8 << 20;
    const BYTES: usize = 6 << 20;
    /// The last read is not paid for yet.
    const UNPAID: usize = 128 << 10;
    let script = "head -c 6291456 /dev/zero; printf done >&2";
    let begin = Instant::now();
    let mut child = shell(script).pipe_stdout().limit_stdout(Some(RATE)).spawn().await.unwrap();
    let mut stdout = child.take_stdout().unwrap();
    let mut output = Vec::new();
    while let 1.. = stdout.read_buf(&mut output).await.unwrap() {
        let earliest = Duration::from_secs_f64(output.len().saturating_sub(UNPAID) as f64 / RATE as f64);
        assert!(begin.elapsed() >= earliest, "{} bytes after {:?}", output.len(), begin.elapsed());
    }
    assert_eq!(output.len(), BYTES);
    assert_eq!(child.finish(&CancellationToken::new()).await.unwrap().words, "done");
}

/// Who waits for a silent child is not woken again and again.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn waiting_for_output_takes_no_processor_time() {
    let switches = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    let mut child = shell("sleep 1; printf end").pipe_stdout().spawn().await.unwrap();
    let mut output = Vec::new();
    let before = switches();
    child.take_stdout().unwrap().read_to_end(&mut output).await.unwrap();
    assert_eq!(output, b"end");
    // A few at the beginning and for the runtime's own purposes.
    assert!(switches() - before < 100, "{} times", switches() - before);
}

#[tokio::test]
async fn cancelling_kills_the_whole_group() {
    let mut child = shell("sleep 1000 & echo $!; wait").pipe_stdout().spawn().await.unwrap();
    let mut line = [0; 32];
    let count = child.take_stdout().unwrap().read(&mut line).await.unwrap();
    let grandchild: u32 = String::from_utf8_lossy(&line[..count]).trim().parse().unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert!(matches!(child.finish(&cancel).await, Err(Error::Cancelled)));
    wait_until_gone(grandchild).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_child_is_asked_to_end_before_it_is_killed() {
    let polite = "trap 'echo asked >&2; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    for (script, patience) in [(polite, Duration::from_secs(1)), (deaf, GRACE + Duration::from_secs(2))] {
        let mut child = shell(script).pipe_stdout().spawn().await.unwrap();
        child.take_stdout().unwrap().read_exact(&mut [0; 6]).await.unwrap();
        let pid = child.id().unwrap();
        let begin = Instant::now();
        child.stop().await;
        assert!(begin.elapsed() < patience, "{script}: {:?}", begin.elapsed());
        assert!(!is_alive(pid));
    }
}

/// A quick source is read quickly, also after it was silent, whatever is asked for at once.
#[tokio::test]
async fn a_quick_source_is_read_quickly() {
    const BYTES: usize = 64 << 20;
    for window in [64 << 10, 128 << 10, 256 << 10, 1 << 20] {
        let mut child = shell("sleep 0.3; head -c 67108864 /dev/zero").pipe_stdout().spawn().await.unwrap();
        let mut stdout = child.take_stdout().unwrap();
        let mut buffer = Vec::with_capacity(window);
        let (mut read, begin) = (0, Instant::now());
        while read < BYTES {
            buffer.clear();
            let count = (&mut stdout).take(window as u64).read_buf(&mut buffer).await.unwrap();
            assert!(count > 0, "it ends after {read} bytes");
            read += count;
        }
        // 20 MB/s; a pipe that is emptied once in the longest sleep gives 8.
        assert!(begin.elapsed() < Duration::from_millis(3500), "{window}: {:?}", begin.elapsed());
        child.finish(&CancellationToken::new()).await.unwrap();
    }
}

#[tokio::test]
async fn dropping_kills_and_reaps() {
    let child = shell("sleep 1000").spawn().await.unwrap();
    let pid = child.id().unwrap();
    drop(child);
    wait_until_gone(pid).await;
    // Tokio reaps orphans when it hears of any child's end.
    shell("true").spawn().await.unwrap().finish(&CancellationToken::new()).await.unwrap();
    let begin = Instant::now();
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(begin.elapsed() < Duration::from_secs(5), "{pid} is a zombie");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The thread that asked for the child ends; the child must not.
#[cfg(target_os = "linux")]
#[test]
fn a_child_outlives_the_thread_that_asked_for_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let child = std::thread::spawn(move || handle.block_on(shell("sleep 1000").spawn()).unwrap()).join().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(is_alive(child.id().unwrap()));
    runtime.block_on(child.stop());
}
