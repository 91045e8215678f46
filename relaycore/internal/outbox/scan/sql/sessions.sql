-- Sessions of this database, each of which may have cached ids. The relay's own are left
-- out: those of its role if that role may not insert, else those of its role and name.
-- The locks show whether a session's last transaction has ended.
SELECT 'session ' || pid, false, NULL FROM pg_stat_activity
WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()
	AND NOT coalesce(usesysid = (SELECT oid FROM pg_roles WHERE rolname = session_user)
		AND (NOT has_table_privilege(session_user, {oid}, 'INSERT')
			OR application_name <> '' AND application_name = current_setting('application_name')), false)
