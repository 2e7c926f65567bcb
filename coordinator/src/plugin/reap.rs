//! Ending processes that an earlier life of the agent left behind, and nobody else's.

use vaultferry_vault::process::start_time;

use crate::catalog::PluginProcess;

/// Kills the process's group at once. Of a group that is gone nothing happens.
pub fn kill_group(pid: u32) {
    #[cfg(unix)]
    if let Ok(pid) = i32::try_from(pid)
        && pid > 1
    {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    #[cfg(not(unix))]
    let _ = pid;
}

/// Kills a plugin of an earlier life, if it is still the same process.
pub fn reap(process: &PluginProcess) {
    if process.start_time != 0 && start_time(process.pid) == Some(process.start_time) {
        tracing::info!(job = process.job_id, pid = process.pid, "ending the plugin of an earlier life");
        kill_group(process.pid);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn another_process_of_the_same_number_is_left_alone() {
        let mut child = std::os::unix::process::CommandExt::process_group(&mut std::process::Command::new("sleep"), 0)
            .arg("60")
            .spawn()
            .expect("sleep");
        let start_time = start_time(child.id()).expect("running");
        reap(&PluginProcess { job_id: String::new(), pid: child.id(), start_time: start_time + 1 });
        assert!(child.try_wait().expect("asked").is_none());
        reap(&PluginProcess { job_id: String::new(), pid: child.id(), start_time });
        assert!(!child.wait().expect("ended").success());
    }
}
