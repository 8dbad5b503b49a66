"""What a person who changes a ledger's entries has to do to its rollups, so that they agree."""

__all__ = ["ROLL_UP"]

ROLL_UP = (
    "DELETE FROM rollups",
    "INSERT INTO rollups SELECT end_time_ns / 3600000000000, tenant_id,"
    " COALESCE(project_id, '*unknown'), COALESCE(key_id, '*unknown'), model,"
    " COALESCE(price_id, ''), cache_write_ttl_class, COUNT(*), SUM(hit_gpu), SUM(hit_host),"
    " SUM(hit_ssd), SUM(hit_shared), SUM(miss), SUM(output), SUM(cache_write)"
    " FROM entries WHERE kind = 'usage' GROUP BY 1, 2, 3, 4, 5, 6, 7",
)
