package classroom;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;

import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.message.CreatePartitionsRequestData;
import org.apache.kafka.common.message.CreateTopicsRequestData;
import org.apache.kafka.common.message.ProduceRequestData;
import org.apache.kafka.common.protocol.ApiKeys;
import org.apache.kafka.common.record.internal.MemoryRecords;
import org.apache.kafka.common.record.internal.MutableRecordBatch;
import org.apache.kafka.common.requests.AbstractRequest;
import org.apache.kafka.common.requests.CreatePartitionsRequest;
import org.apache.kafka.common.requests.CreateTopicsRequest;
import org.apache.kafka.common.requests.EnvelopeRequest;
import org.apache.kafka.common.requests.ProduceRequest;
import org.apache.kafka.common.requests.RequestContext;
import org.apache.kafka.common.requests.RequestHeader;
import org.apache.kafka.common.requests.TxnOffsetCommitRequest;
import org.apache.kafka.common.resource.ResourceType;
import org.apache.kafka.metadata.authorizer.StandardAcl;
import org.apache.kafka.metadata.authorizer.StandardAuthorizer;
import org.apache.kafka.network.Request;
import org.apache.kafka.server.authorizer.Action;
import org.apache.kafka.server.authorizer.AuthorizableRequestContext;
import org.apache.kafka.server.authorizer.AuthorizationResult;

/**
 * Kafka's authorizer, which in addition refuses a learner what would make some state of the brokers grow without a limit.
 *
 * Kafka has quotas for bytes and for partitions made, and none for names, members, producers and what one request may
 * ask for; a watchdog would see these only after they are there. Rights are the one thing that is asked before. What is
 * refused looks like a lack of rights to its client. The limits are far above what all lessons together take.
 *
 * The request itself is taken from the thread that handles it: that is internal to Kafka 4.4, and tried at the start.
 */
public final class Guard extends StandardAuthorizer {
    static final int NAME = 249; // letters of a group's name and of a transactional id; a topic has no more by itself
    static final int LARGE = 131_072; // bytes of a request that is not of records
    static final int SMALL = 16_384; // bytes of one that a member of a group, or a setting, is kept from
    static final int PARTITIONS = 100; // that one request may make; Kafka's quota lets one request of any size pass

    private final Map<String, Learner> learners = new ConcurrentHashMap<>();
    private String administrator = "";
    private final String report = System.getProperty("classroom.refused"); // a file that only this class writes to

    @Override
    public void configure(Map<String, ?> configs) {
        super.configure(configs);
        administrator = String.valueOf(configs.get(SUPER_USERS_CONFIG)).replaceFirst("^User:", "");
        current(); // another version of Kafka without it ends here, and not in the middle of a class
    }

    /** A teacher's `reset`, which for a moment denies a learner all of their groups, begins their counts anew. */
    @Override
    public void addAcl(Uuid id, StandardAcl acl) {
        super.addAcl(id, acl);
        if (acl.permissionType() == AclPermissionType.DENY && acl.operation() == AclOperation.ALL) {
            learners.remove(acl.principal().replaceFirst("^User:", ""));
        }
    }

    @Override
    public List<AuthorizationResult> authorize(AuthorizableRequestContext context, List<Action> actions) {
        String name = context.principal().getName();
        if (name.equals(administrator)) {
            return super.authorize(context, actions);
        }
        Learner learner = learners.computeIfAbsent(name, key -> new Learner());
        synchronized (learner) {
            if (refuses(learner, context)) { // before rights are looked up, of which a request may name 400,000
                ApiKeys kind = ApiKeys.forId(context.requestType());
                boolean large = kind != ApiKeys.PRODUCE && current().sizeInBytes() > LARGE;
                tell(name, learner, large ? "LARGE" : kind.name());
                return Collections.nCopies(actions.size(), AuthorizationResult.DENIED);
            }
            List<AuthorizationResult> answers = new ArrayList<>(super.authorize(context, actions));
            for (int i = 0; i < actions.size(); i++) {
                if (answers.get(i) == AuthorizationResult.ALLOWED && refuses(learner, actions.get(i))) {
                    answers.set(i, AuthorizationResult.DENIED);
                    tell(name, learner, actions.get(i).resourcePattern().resourceType().name());
                }
            }
            return answers;
        }
    }

    /** Tell the watchdog: a line a second at most, of a name, how many were refused since the last, and what. */
    private void tell(String name, Learner learner, String what) {
        learner.refused++;
        if (report == null || learner.told != 0 && System.nanoTime() - learner.told < 1_000_000_000L) {
            return;
        }
        learner.told = System.nanoTime();
        String line = name + " " + learner.refused + " " + what + "\n";
        learner.refused = 0;
        try {
            Files.writeString(Path.of(report), line, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        } catch (IOException error) {
            // a full disk: it is refused all the same
        }
    }

    private static boolean refuses(Learner learner, Action action) {
        String name = action.resourcePattern().name();
        boolean makes = action.operation() == AclOperation.READ // a member, and a commit
                || action.operation() == AclOperation.WRITE
                || action.operation() == AclOperation.ALTER_CONFIGS;
        if (action.resourcePattern().resourceType() == ResourceType.TRANSACTIONAL_ID) {
            return name.length() > NAME || makes && !learner.ids.admit(name);
        }
        if (action.resourcePattern().resourceType() == ResourceType.GROUP) {
            return name.length() > NAME || makes && !learner.groups.admit(name);
        }
        return false;
    }

    private static boolean refuses(Learner learner, AuthorizableRequestContext context) {
        Request request = current();
        if (request == null) {
            return false; // the rest of a request that had to wait: it was judged when it came
        }
        int size = request.sizeInBytes();
        return switch (ApiKeys.forId(context.requestType())) {
            case PRODUCE -> manyProducers(learner, (ProduceRequest) request.body(AbstractRequest.class));
            case JOIN_GROUP -> size > SMALL || !learner.joins.take();
            case CONSUMER_GROUP_HEARTBEAT, SHARE_GROUP_HEARTBEAT, STREAMS_GROUP_HEARTBEAT -> size > SMALL;
            case ALTER_CONFIGS, INCREMENTAL_ALTER_CONFIGS -> size > SMALL || !learner.settings.take();
            // Kafka's quota of older versions lets what is too much pass, and only answers late.
            case CREATE_TOPICS -> size > LARGE || context.requestVersion() < 6 || partitions(context, request) > PARTITIONS;
            case CREATE_PARTITIONS -> size > LARGE || context.requestVersion() < 3
                    || partitions(context, request) > PARTITIONS;
            case DELETE_TOPICS -> size > LARGE || context.requestVersion() < 5;
            case TXN_OFFSET_COMMIT -> {
                var data = ((TxnOffsetCommitRequest) request.body(AbstractRequest.class)).data();
                yield size > LARGE || !learner.pending.admit(data.producerId() + " " + data.groupId());
            }
            default -> size > LARGE;
        };
    }

    /** The request that this thread handles; null in a thread that handles none. */
    private static Request current() {
        return kafka.server.KafkaRequestHandler$.MODULE$.kafka$server$KafkaRequestHandler$$threadCurrentRequest().get();
    }

    /** How many partitions a request would make, or name: those there are already are not told apart. */
    private static long partitions(AuthorizableRequestContext context, Request request) {
        AbstractRequest body = request.body(AbstractRequest.class);
        if (body instanceof EnvelopeRequest envelope) { // a broker hands it on to the controller
            ByteBuffer inner = envelope.requestData().duplicate();
            RequestHeader.parse(inner);
            body = ((RequestContext) context).parseRequest(inner).request;
        }
        long count = 0;
        if (body instanceof CreateTopicsRequest topics) {
            for (CreateTopicsRequestData.CreatableTopic topic : topics.data().topics()) {
                count += Math.max(1, Math.max(topic.numPartitions(), topic.assignments().size()));
            }
        } else if (body instanceof CreatePartitionsRequest more) {
            for (CreatePartitionsRequestData.CreatePartitionsTopic topic : more.data().topics()) {
                count += topic.count();
            }
        }
        return count;
    }

    /** Brokers keep each producer that wrote to a partition, by whatever number it calls itself. */
    private static boolean manyProducers(Learner learner, ProduceRequest request) {
        for (ProduceRequestData.TopicProduceData topic : request.data().topicData()) {
            for (ProduceRequestData.PartitionProduceData part : topic.partitionData()) {
                if (!(part.records() instanceof MemoryRecords records)) {
                    continue;
                }
                for (MutableRecordBatch batch : records.batches()) {
                    if (batch.hasProducerId() && !learner.producers.admit(
                            Objects.hash(topic.name(), topic.topicId(), part.index()) * 31L + batch.producerId())) {
                        return true;
                    }
                }
            }
        }
        return false;
    }

    /** What a learner has made use of. */
    private static final class Learner {
        final Names ids = new Names(1_000, TimeUnit.HOURS.toNanos(12)); // as long as the broker keeps them
        final Names groups = new Names(1_000, TimeUnit.HOURS.toNanos(1));
        final Names producers = new Names(20_000, TimeUnit.HOURS.toNanos(1));
        final Names pending = new Names(300, TimeUnit.MINUTES.toNanos(15)); // the longest transaction
        final Bucket joins = new Bucket(20, 300);
        final Bucket settings = new Bucket(5, 50);
        int refused;
        long told;
    }

    /** Names that were met within a time; no more than so many. */
    private static final class Names {
        private final LinkedHashMap<Object, Long> seen = new LinkedHashMap<>();
        private final int most;
        private final long nanos;

        Names(int most, long nanos) {
            this.most = most;
            this.nanos = nanos;
        }

        boolean admit(Object name) {
            long now = System.nanoTime();
            if (seen.remove(name) == null) { // else it moves to the end
                var eldest = seen.values().iterator();
                while (eldest.hasNext() && now - eldest.next() > nanos) {
                    eldest.remove();
                }
                if (seen.size() >= most) {
                    return false;
                }
            }
            seen.put(name, now);
            return true;
        }
    }

    /** So many a second, and a burst. */
    private static final class Bucket {
        private final double rate;
        private final double most;
        private double left;
        private long at = System.nanoTime();

        Bucket(double rate, double most) {
            this.rate = rate;
            this.most = most;
            left = most;
        }

        boolean take() {
            long now = System.nanoTime();
            left = Math.min(most, left + rate * (now - at) / 1e9);
            at = now;
            if (left < 1) {
                return false;
            }
            left -= 1;
            return true;
        }
    }
}
