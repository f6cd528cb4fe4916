-- One charge a transaction: the statements of db/charging.py for a batch of one. Each client walks ids of its own.
\set step :step + 1
\set id :first + :client_id + :clients * :step
BEGIN;
SELECT id, user_id, invitee_user_id, status, is_consume, lock_fence FROM appointment_info WHERE id = :id FOR UPDATE \gset appointment_
SELECT count FROM user_coupon WHERE user_id = :appointment_user_id AND coupon_id = 1 FOR UPDATE \gset coupon_
SELECT count FROM coupon_price WHERE other_user_id = :appointment_invitee_user_id \gset price_
UPDATE user_coupon SET count = count - :price_count WHERE user_id = :appointment_user_id AND coupon_id = 1;
INSERT INTO user_consume (appointment_id, user_id, other_user_id, coupon_id, prop_id, count, lock_fence) VALUES (:id, :appointment_user_id, :appointment_invitee_user_id, 1, 1, :price_count, :fence) RETURNING id, created_at;
UPDATE appointment_info SET is_consume = true, lock_fence = :fence WHERE id = :id;
INSERT INTO appointment_action (appointment_id, user_id, type) VALUES (:id, :appointment_user_id, 1) RETURNING created_at;
COMMIT;
