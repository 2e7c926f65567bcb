//! Points, and the staged records that become points.

use rusqlite::{OptionalExtension as _, Transaction, params};
use vaultferry_vault::{Id, commit};

use super::values::{Failure, bodies, body, decode, encode, signed, time_from};
use crate::catalog::{Point, Standing};

/// 40 bytes for each pack: its id, and its size in little endian.
fn encode_packs(packs: &[(Id, u64)]) -> Vec<u8> {
    packs.iter().flat_map(|(id, size)| id.as_bytes().iter().copied().chain(size.to_le_bytes())).collect()
}

fn decode_packs(bytes: &[u8]) -> Result<Vec<(Id, u64)>, Failure> {
    let (packs, rest) = bytes.as_chunks::<40>();
    if !rest.is_empty() {
        return Err(Failure::Body("a staged record's packs are cut off".to_owned()));
    }
    packs
        .iter()
        .map(|pack| {
            let id = Id::try_from(&pack[..32]).map_err(|error| Failure::Body(error.to_string()))?;
            let size = pack.last_chunk::<8>().expect("a pack has 40 bytes");
            Ok((id, u64::from_le_bytes(*size)))
        })
        .collect()
}

pub(super) fn stage(tx: &Transaction<'_>, job_id: &str, record: &commit::Record) -> Result<(), Failure> {
    // A backup that a prune overtook is staged again by the same job.
    let sql = "insert or replace into staged(job_id, snapshot_id, sealed, prune_epoch, packs, time, created)
               values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let (time, epoch) = (record.time.as_microsecond(), signed(record.prune_epoch));
    let (packs, created) = (encode_packs(&record.packs), encode(&record.created)?);
    tx.prepare_cached(sql)?.execute(params![
        job_id,
        record.snapshot_id.to_string(),
        &record.sealed[..],
        epoch,
        packs,
        time,
        created
    ])?;
    Ok(())
}

pub(super) fn staged(tx: &Transaction<'_>, job_id: &str) -> Result<Option<commit::Record>, Failure> {
    let sql = "select snapshot_id, sealed, prune_epoch, packs, time, created from staged where job_id = ?1";
    let row = tx
        .query_row(sql, [job_id], |row| {
            let texts: (String, String) = (row.get(0)?, row.get(5)?);
            let blobs: (Vec<u8>, Vec<u8>) = (row.get(1)?, row.get(3)?);
            let numbers: (i64, i64) = (row.get(2)?, row.get(4)?);
            Ok((texts, blobs, numbers))
        })
        .optional()?;
    let Some(((snapshot_id, created), (sealed, packs), (epoch, time))) = row else { return Ok(None) };
    Ok(Some(commit::Record {
        snapshot_id: snapshot_id.parse().map_err(|_| Failure::Body("a staged record's id is not one".to_owned()))?,
        sealed: sealed.into(),
        prune_epoch: epoch.cast_unsigned(),
        packs: decode_packs(&packs)?,
        time: time_from(time)?,
        created: decode(&created)?,
    }))
}

/// Adds a point. `replace`: one that is there gives way; otherwise it stays.
pub(super) fn insert(tx: &Transaction<'_>, point: &Point, replace: bool) -> Result<(), Failure> {
    let verb = if replace { "replace" } else { "ignore" };
    let sql = format!(
        "insert or {verb} into points(instance_id, id, time, stored_bytes, deleted, body) values (?1, ?2, ?3, ?4, ?5, ?6)"
    );
    let (time, stored) = (point.time.as_microsecond(), signed(point.stored_bytes));
    let deleted = point.standing.purge_time.is_some();
    tx.prepare_cached(&sql)?.execute(params![
        point.instance_id,
        point.id.to_string(),
        time,
        stored,
        deleted,
        encode(point)?
    ])?;
    Ok(())
}

pub(super) fn page(
    tx: &Transaction<'_>,
    instance_id: &str,
    deleted: bool,
    before: Option<(jiff::Timestamp, Id)>,
    limit: u32,
) -> Result<Vec<Point>, Failure> {
    let (time, id) = before.map_or((i64::MAX, String::new()), |(time, id)| (time.as_microsecond(), id.to_string()));
    let sql = "select body from points where instance_id = ?1 and deleted = ?2 and (time, id) < (?3, ?4)
               order by time desc, id desc limit ?5";
    bodies(tx, sql, params![instance_id, deleted, time, id, limit])
}

/// See [`crate::catalog::Catalog::all_points`].
pub(super) fn all(tx: &Transaction<'_>, instance_id: &str) -> Result<Vec<Point>, Failure> {
    let mut points: Vec<Point> = bodies(tx, "select body from points where instance_id = ?1", [instance_id])?;
    // Backups of an instance run one after the other, and the ids of jobs grow with time.
    points.sort_by(|a, b| (&a.job_id, a.time).cmp(&(&b.job_id, b.time)));
    Ok(points)
}

pub(super) fn by_prefix(tx: &Transaction<'_>, instance_id: &str, prefix: &str) -> Result<Vec<Point>, Failure> {
    let sql = "select body from points where instance_id = ?1 and id >= ?2 and id < ?2 || 'g' order by id limit 2";
    bodies(tx, sql, params![instance_id, prefix])
}

/// True when that is new.
pub(super) fn set_standing(
    tx: &Transaction<'_>,
    instance_id: &str,
    id: &Id,
    standing: Option<Standing>,
) -> Result<bool, Failure> {
    let key = params![instance_id, id.to_string()];
    let Some(standing) = standing else {
        let mut delete = tx.prepare_cached("delete from points where instance_id = ?1 and id = ?2")?;
        return Ok(delete.execute(key)? > 0);
    };
    let sql = "select body from points where instance_id = ?1 and id = ?2";
    let Some(mut point) = body::<Point>(tx, sql, key)? else { return Ok(false) };
    let is_new = point.standing != standing;
    if is_new {
        point.standing = standing;
        insert(tx, &point, true)?;
    }
    Ok(is_new)
}
